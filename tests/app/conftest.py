"""An object store that speaks S3."""

from collections.abc import Iterator

import pytest

from tests.support.object_store import Store, running_store


@pytest.fixture(scope="session")
def shared_store() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def object_store(shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that answers well, with an empty bucket, which the environment leads to."""
    for name, value in shared_store.environment().items():
        monkeypatch.setenv(name, value)
    shared_store.empty()
    return shared_store

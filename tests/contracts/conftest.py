"""What the batteries share: every architecture of the registry, each at fault for its own tests only."""

import pytest


@pytest.fixture(scope="module")
def names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The models that the selected tests of a module ask for by their parameter `name`."""
    asked = (
        item.callspec.params.get("name")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    )
    return tuple(dict.fromkeys(name for name in asked if name is not None))

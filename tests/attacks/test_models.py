"""Every hostile model is refused when it is posted, in time, with nothing run and nothing outside read."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import Refused
from app.settings import SourceSettings
from app.sources.models import ModelSources
from tests.support.attacks import companions, configs, headers, paths
from tests.support.attacks.attack import Attack

KINDS = {"paths": paths, "headers": headers, "configs": configs, "companions": companions}
ATTACKS = {f"{kind}: {name}": attack for kind, module in KINDS.items() for name, attack in module.ATTACKS.items()}
PATIENCE_SECONDS = 60.0
"""Far more than an answer takes, on a machine that does other things as well; a bomb takes minutes."""
LONGEST_MESSAGE = 1000
opened: list[str] | None = None


def note(event: str, arguments: tuple[object, ...]) -> None:
    """Write down which files are opened, while somebody wants to know."""
    if opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(note)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Yield the names of the files that are opened in the block."""
    global opened
    opened = found = []
    try:
        yield found
    finally:
        opened = None


@pytest.fixture
def sources(tmp_path: Path) -> ModelSources:
    (tmp_path / "models").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("{}")
    return ModelSources(
        SourceSettings(model_roots=(tmp_path / "models",), hub_endpoint="http://127.0.0.1:9", hub_enabled=False)
    )


def answer(sources: ModelSources) -> tuple[str, str]:
    """Return code and message of the refusal; two empty texts where the model is accepted."""
    try:
        sources.resolve("local:hostile")
    except Refused as refused:
        return refused.code, refused.message
    return "", ""


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_is_answered_by_its_refusal(sources: ModelSources, tmp_path: Path, attack: Attack) -> None:
    attack.make(tmp_path / "models" / "hostile")
    begun = time.monotonic()
    with noting() as found:
        code, message = answer(sources)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert code in attack.codes, message
    assert len(message) < LONGEST_MESSAGE
    assert str(tmp_path) not in message
    read = {Path(os.path.realpath(name)) for name in found}
    assert not [path for path in read if path.is_relative_to(tmp_path / "outside") or path.suffix == ".py"]
    assert not list(tmp_path.rglob("PWNED"))

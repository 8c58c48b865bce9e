"""A real model is held against what its architecture was inferred to be, before anything is computed."""

from dataclasses import replace
from pathlib import Path

import pytest

from modelpress.spec.architectures import INFERRED
from modelpress.spec.errors import UnsupportedArchitecture
from tests.support.models import INFERRED_SAMPLE, save_tiny_model
from workers.compression.inferred.check import check_inferred

NAME = INFERRED_SAMPLE[0]


@pytest.mark.parametrize("name", INFERRED_SAMPLE)
def test_a_model_of_the_type_passes(name: str, tmp_path: Path) -> None:
    save_tiny_model(name, tmp_path)
    check_inferred(tmp_path)


def test_a_model_that_differs_is_refused_with_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(NAME, tmp_path)
    found = INFERRED.understood[NAME]
    other = replace(found, attention=replace(found.attention, scaled=not found.attention.scaled))
    monkeypatch.setitem(INFERRED.understood, NAME, other)
    with pytest.raises(UnsupportedArchitecture, match="differs in its attention"):
        check_inferred(tmp_path)

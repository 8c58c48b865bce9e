"""The kind 'bits' on a tiny model: rounding alone, and behind a method."""

import pytest

from bench.experiment import Place
from bench.kinds.bits import Bits, Rounding, Structure
from bench.texts import Piece
from tests.support.text_models import amplify_blocks, write_text, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("scratch"))
    write_text(place.data / "words.txt", 600)
    amplify_blocks(write_tiny_model(place.data / "model"))
    return place


def test_a_higher_ratio_costs_more_and_is_reached(place: Place) -> None:
    cases = (
        Rounding(name="less", ratio=1.5, format="safetensors"),
        Rounding(name="more", ratio=2.2, format="safetensors", structure=Structure(method="width", ratio=1.2)),
    )
    experiment = Bits(
        kind="bits",
        title="Bits",
        about="",
        model=str(place.data / "model"),
        dtype="float32",
        calibration=Piece(source="words.txt", stop=0.5),
        judged=Piece(source="words.txt", start=0.5),
        sequences=4,
        windows=4,
        length=32,
        cases=cases,
    )
    less, more = experiment.measure(cases, place)
    assert less.ratio == pytest.approx(1.5, rel=0.1) and more.ratio == pytest.approx(2.2, rel=0.1)
    assert 0 < less.divergence < more.divergence
    assert set(less.codes) | set(more.codes) <= {"int8", "int4_g32", "int4_g64", "int4_g128"}
    assert len(experiment.table((less, more)).cells) == 2

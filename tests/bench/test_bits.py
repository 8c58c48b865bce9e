"""The kind 'bits' on a tiny model: rounding alone, and behind a method."""

import pytest

from bench.experiment import Place
from bench.kinds.bits import Bits, Mix, Rounding, Structure, Training
from bench.texts import Piece
from tests.support.text_models import amplify_blocks, write_text, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("scratch"))
    write_text(place.data / "words.txt", 600)
    amplify_blocks(write_tiny_model(place.data / "model"))
    return place


def bits(place: Place, cases: tuple[Rounding | Mix, ...]) -> Bits:
    return Bits(
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


def test_a_higher_ratio_costs_more(place: Place) -> None:
    cases = (
        Rounding(name="less", ratio=1.5, format="safetensors"),
        Rounding(name="more", ratio=2.2, format="safetensors", structure=Structure(method="width", ratio=1.2)),
    )
    experiment = bits(place, cases)
    less, more = experiment.measure(cases, place)
    assert 1 < less.ratio < more.ratio
    assert less.in_weights is not None and more.in_weights is not None
    assert 0 < less.in_weights.divergence < more.in_weights.divergence
    assert set(less.codes) | set(more.codes) <= {"int8", "int4_g32", "int4_g64", "int4_g128"}
    assert len(experiment.table((less, more)).cells) == 2


def test_training_brings_a_rounded_model_nearer_to_the_original(place: Place) -> None:
    training = Training(text=Piece(source="words.txt", stop=0.5), tokens=32 * 4 * 16, length=32)
    cases = (
        Rounding(name="bits", ratio=2.2, format="safetensors", training=training),
        Rounding(
            name="both",
            ratio=2.2,
            format="safetensors",
            structure=Structure(method="width", ratio=1.2),
            training=training,
        ),
    )
    for row in bits(place, cases).measure(cases, place):
        assert row.untuned is not None and row.in_weights is not None
        assert row.in_weights.divergence < row.untuned.divergence
        assert ("training" in row.seconds) is (row.case == "both")


def test_files_of_ours_and_of_llama_cpp_are_judged_by_llama_cpp(place: Place) -> None:
    pytest.importorskip("xllamacpp", reason="it is llama.cpp")
    cases = (Mix(name="theirs", mix="Q8_0"), Mix(name="theirs in four bits", mix="Q4_0"), Rounding(name="o", ratio=1.9))
    eight, four, ours = bits(place, cases).measure(cases, place)
    assert eight.in_engine is not None and four.in_engine is not None and ours.in_engine is not None
    assert 0 < eight.in_engine.divergence < four.in_engine.divergence
    assert ours.in_weights is not None
    assert ours.in_engine.divergence == pytest.approx(ours.in_weights.divergence, rel=0.2, abs=1e-3)
    assert eight.in_weights is None and ours.predicted is not None
    assert len(bits(place, cases).table((eight, four, ours)).cells) == 3

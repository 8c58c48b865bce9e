"""The kind 'quality' on a tiny model: every way to a smaller model that an experiment may name."""

import pytest

from bench.engine import Training
from bench.experiment import Place
from bench.kinds.quality import Calibration, Compression, Judged, Quality
from bench.texts import Piece
from tests.support.text_models import amplify_blocks, write_text, write_tiny_model

TEXTS = {
    "first half": Piece(source="words.txt", stop=0.5),
    "rest": Piece(source="words.txt", start=0.5),
    "teacher:": Piece(source="teacher:"),
}
CASES = {
    "low_rank": Compression(name="low_rank", method="low_rank", ratio=1.2),
    "own text": Compression(name="own text", method="svd", ratio=1.2, calibrated_on=("teacher:",)),
    "drop": Compression(name="drop", method="drop", ratio=1.4),
    "tqcompressor-style": Compression(name="tqcompressor-style", method="tqcompressor-style", ratio=1.2),
    "auto": Compression(name="auto", method="auto", ratio=1.2),
    "trained": Compression(
        name="trained",
        method="svd",
        ratio=1.2,
        training=Training(tokens=256, texts=("first half", "teacher:"), length=32, learning_rate=1e-3),
        judged_at=2,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("scratch"))
    write_text(place.data / "words.txt", 600)
    amplify_blocks(write_tiny_model(place.data / "model"))
    return place


@pytest.fixture(scope="module")
def experiment(place):
    return Quality(
        kind="quality",
        title="Quality",
        about="",
        model=str(place.data / "model"),
        dtype="float32",
        texts=TEXTS,
        calibration=Calibration(texts=("first half",), sequences=4, length=32),
        judged=Judged(texts=("rest",), windows=4, length=32),
        cases=tuple(CASES.values()),
        gap_of="drop",
    )


@pytest.fixture(scope="module")
def rows(experiment, place):
    return {row.case: row for row in experiment.measure(experiment.cases, place)}


def test_the_original_comes_first_with_its_perplexity(rows):
    first = next(iter(rows.values()))
    assert first.case == "original"
    assert first.perplexity["rest"] > 1
    assert first.points[0].ratios == {"rest": 1.0}


@pytest.mark.parametrize("name", CASES)
def test_a_case_reaches_its_ratio_and_is_judged(rows, name):
    reached = rows[name].ratio
    assert reached == pytest.approx(CASES[name].ratio, rel=0.1)
    assert all(point.ratios["rest"] > 0 for point in rows[name].points)


def test_a_trained_case_is_judged_before_on_the_way_and_at_the_end(rows):
    assert [point.tokens for point in rows["trained"].points] == [0, 128, 256]
    first, *_, last = (point.ratios["rest"] for point in rows["trained"].points)
    assert last != first


def test_dropped_blocks_are_named(rows):
    assert len(rows["drop"].removed) >= 1


def test_auto_names_the_method_that_it_took(rows):
    assert rows["auto"].chosen in {"low_rank", "width_low_rank", "width", "fusion"}


def test_the_table_shows_gaps_as_shares_of_the_gap_of_one_case(experiment, rows):
    table = experiment.table([rows["original"], rows["drop"]])
    place = table.header.index("gap, rest")
    assert [cells[place] for cells in table.cells] == ["0.00", "1.00"]


def test_a_text_that_the_experiment_lacks_is_refused(experiment):
    fields = experiment.model_dump() | {"judged": {"texts": ("elsewhere",)}}
    with pytest.raises(ValueError, match="elsewhere"):
        Quality.model_validate(fields)

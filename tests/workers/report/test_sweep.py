"""What people are shown of several ratios."""

from pathlib import Path

from modelpress.contract.job import Comparison, SweepResult
from modelpress.contract.report import SweepReport
from tests.support.reports import ORIGINAL_PARAMETERS, factored_report, metrics
from workers.report.sweep import TRADEOFF, by_target, draw_tradeoff, sweep_card


def sweep_report() -> SweepReport:
    before = metrics(ORIGINAL_PARAMETERS, (23.59, 24.5))
    measured = {1.5: (45.3, 61.2), 1.15: (26.1, 29.9), 1.3: (34.02, 53.41)}
    results = tuple(
        SweepResult(
            target_ratio=ratio,
            achieved_ratio=ratio,
            directory=str(ratio),
            method="low_rank",
            metrics=Comparison(before=before, after=metrics(round(ORIGINAL_PARAMETERS / ratio), perplexities)),
        )
        for ratio, perplexities in measured.items()
    )
    recipe = factored_report().recipe.model_copy(update={"target_ratio": tuple(measured)})
    return SweepReport(job_id="job_1", recipe=recipe, results=results)


def test_the_same_report_gives_the_same_picture(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        draw_tradeoff(sweep_report(), directory)
    drawn = (first / TRADEOFF).read_bytes()
    assert drawn == (second / TRADEOFF).read_bytes()
    assert drawn.startswith(b"<?xml")


def test_two_ratios_that_reach_the_same_one_are_both_shown() -> None:
    report = sweep_report()
    same = tuple(result.model_copy(update={"achieved_ratio": 1.4}) for result in report.results)
    assert list(by_target(report.model_copy(update={"results": same}))) == [1.0, 1.15, 1.3, 1.5]


def test_the_card_has_a_row_for_the_original_and_for_each_ratio(tmp_path: Path) -> None:
    report = sweep_report()
    card = sweep_card(report, {"license": "apache-2.0"}, draw_tradeoff(report, tmp_path))
    rows = [line for line in card.splitlines() if line.startswith(("| [", "| ("))]
    assert [row.split(" | ")[1] for row in rows] == ["1", "1.5", "1.15", "1.3"]
    assert "[`1.15`](1.15)" in card
    assert "license: apache-2.0" in card
    assert f"]({TRADEOFF})" in card

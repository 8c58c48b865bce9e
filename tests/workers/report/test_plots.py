"""Which pictures a report gets, and that they are the same each time."""

from pathlib import Path

import pytest

from modelpress.contract.report import CompressionReport, RemovedBlock
from modelpress.spec.criteria import CRITERIA
from tests.support.reports import distillation_report, factored_report, fused_report, metrics
from workers.report.charts import moving_mean
from workers.report.plots import block_influence, draw, error_per_site, in_two_lines, measured_models

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("report", "names"),
    [
        (factored_report(), {"before_and_after", "error_per_site", "allocation"}),
        (fused_report(), {"before_and_after", "error_per_site", "allocation", "block_influence"}),
        (
            factored_report(distillation=distillation_report(5)),
            {"before_and_after", "error_per_site", "allocation", "loss_curve"},
        ),
        (factored_report().model_copy(update={"sites": ()}), {"before_and_after"}),
    ],
)
def test_every_picture_that_has_something_to_show_is_drawn(
    report: CompressionReport, names: set[str], tmp_path: Path
) -> None:
    plots = draw(report, tmp_path)
    assert {plot.name for plot in plots} == {f"plots/{name}.png" for name in names}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")} == {plot.name for plot in plots}
    assert all((tmp_path / plot.name).read_bytes().startswith(PNG) for plot in plots)


def test_any_number_of_measured_models_is_drawn(tmp_path: Path) -> None:
    rounded = {f"int{bits}": metrics(103_471_936, (34.0 + bits, 53.0)) for bits in range(2, 9)}
    report = factored_report()
    many = report.model_copy(update={"metrics": report.metrics.model_copy(update={"formats": rounded})})
    assert list(measured_models(many)) == ["original", "compressed", *(f"compressed, {name}" for name in rounded)]
    assert draw(many, tmp_path)


def test_a_dataset_may_be_called_what_is_no_formula(tmp_path: Path) -> None:
    renamed = factored_report().model_dump_json().replace("state-of-the-union.txt", "a$x_$b.txt")
    assert draw(CompressionReport.model_validate_json(renamed), tmp_path)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        draw(fused_report(), directory)
    for path in first.rglob("*.png"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_removed_blocks_have_no_error() -> None:
    figure = error_per_site(fused_report())
    assert figure is not None
    assert len(figure.axes[0].patches) == 30 - 6


def test_a_block_keeps_the_score_of_the_last_round_in_which_it_was_asked() -> None:
    scores = {2: {1: 0.5, 2: 0.1}, 3: {3: 0.2, 4: 0.6}}
    rounds = tuple(
        RemovedBlock(block=block, criterion="loss_after_removal", scores=each) for block, each in scores.items()
    )
    figure = block_influence(fused_report(removed_blocks=rounds))
    assert figure is not None
    axes = figure.axes[0]
    columns = {round(column.get_x() + column.get_width() / 2): column.get_height() for column in axes.patches}
    assert columns == {1: 0.5, 2: 0.1, 3: 0.2, 4: 0.6}
    assert axes.get_ylabel() == CRITERIA["loss_after_removal"].axis


def test_a_moving_mean_lies_in_the_middle_of_its_span() -> None:
    assert moving_mean([0.0, 3.0, 6.0, 0.0], 1) == [1.5, 3.0, 3.0, 3.0]


def test_a_dataset_of_the_hub_takes_two_lines() -> None:
    assert in_two_lines("hub:org/name/config/test") == "org/name\nconfig/test"
    assert in_two_lines("local:a/text.txt") == "a/text.txt"

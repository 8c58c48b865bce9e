"""What a stranger's process takes for a model."""

from pathlib import Path

from tests.tiny import write_tiny_model
from workers.compression.evaluation.peak_memory import peak_memory
from workers.compression.evaluation.size import stored_size


def test_a_larger_model_takes_more_by_about_its_weights_and_one_that_does_not_open_has_no_figure(
    tmp_path: Path,
) -> None:
    small, large = (write_tiny_model(tmp_path / str(width), hidden_size=width) for width in (32, 1024))
    (tmp_path / "none").mkdir()
    first, second, none = peak_memory([small, large, tmp_path / "none"], prompt=8, new_tokens=2)
    assert none is None
    assert first is not None
    assert second is not None
    weights = stored_size(large).bytes
    assert 0.8 * weights < second - first < 3 * weights


def test_a_measurement_that_takes_too_long_is_none(tmp_path: Path) -> None:
    assert peak_memory([write_tiny_model(tmp_path / "tiny")], timeout=0.01) == [None]

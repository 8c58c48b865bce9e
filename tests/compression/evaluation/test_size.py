"""The stored size of a checkpoint."""

from pathlib import Path

from tests.support.models import save_tiny_model
from workers.compression.evaluation.size import stored_size


def test_size_counts_a_tied_table_once(tmp_path: Path) -> None:
    model = save_tiny_model("llama-tied", tmp_path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (stored_size(tmp_path).parameters, stored_size(tmp_path).bytes) == (parameters, 4 * parameters)

"""What is wrong with a model is said of the file that it is wrong in."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.jobs import last_report, small_job
from workers.messages import ErrorReport
from workers.stages import compute, memory


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("config.json", {"layer_types": ["evil"] * 3}, "invalid_model"),
        ("config.json", {"dtype": "evil"}, "invalid_model"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "evil"}}, "no_tokenizer"),
    ],
)
def test_a_broken_config_is_not_taken_for_a_broken_tokenizer(
    tmp_path: Path, name: str, changes: dict[str, object], code: str
) -> None:
    job = small_job(tmp_path)
    path = job.model_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    report = last_report(job)
    assert isinstance(report, ErrorReport)
    assert (report.code, report.stage) == (code, "inspect")


def test_a_model_that_no_card_holds_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(compute, "dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(memory, "left_on_gpu", lambda _: 1000)
    report = last_report(small_job(tmp_path))
    assert isinstance(report, ErrorReport)
    assert (report.code, report.stage) == ("out_of_memory", "inspect")

"""What is wrong with a model is said of the file that it is wrong in."""

import json
from pathlib import Path

import pytest

from tests.support.jobs import last_report, small_job
from workers.messages import ErrorReport


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

"""How a job ends for which 'auto' finds no method."""

import pytest

from modelpress.spec.methods.auto import AutoOptions
from tests.support.jobs import last_report
from workers.messages import Assignment, ErrorReport
from workers.stages import plan


def test_where_no_method_leaves_a_working_model_the_job_says_which_ratios_to_ask_for(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "trials", lambda *_, **__: iter(()))
    recipe = assignment.recipe.model_copy(update={"method": AutoOptions(), "precision": 16})
    report = last_report(assignment.model_copy(update={"recipe": recipe}))
    assert isinstance(report, ErrorReport)
    assert report.code == "no_method_fits"
    assert "another target_ratio between" in report.message

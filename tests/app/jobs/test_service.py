"""What can be done with a job from outside, against a real database and real files."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.db import Sessions
from app.errors import (
    JobEnded,
    JobNotFound,
    MethodDoesNotFit,
    QueueFull,
    RatioOutOfRange,
    UnknownDataset,
    UnknownModel,
    UnsupportedModel,
)
from app.jobs import reaper, store
from app.jobs.listing import JobFilter
from app.jobs.service import JobService
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from tests.support.doorbell import SilentDoorbell
from tests.support.text_models import TQCOMPRESSOR_RATIOS, write_tiny_inferred, write_tiny_model


def recipe(tiny: dict[str, Any], **changes: Any) -> Recipe:
    return Recipe.model_validate({**tiny, **changes})


def test_a_submitted_job_is_queued_and_rung(
    service: JobService, doorbell: SilentDoorbell, tiny: dict[str, Any]
) -> None:
    job = service.submit(recipe(tiny, metadata={"team": "search"}))
    assert (job.state, job.attempt, job.recipe.metadata) == (State.QUEUED, 0, {"team": "search"})
    assert job.source.model_type == "llama"
    assert doorbell.rung == [job.id]
    assert service.get(job.id) == job


@pytest.mark.parametrize(
    ("changes", "field", "error"),
    [
        ({"model": "local:nowhere"}, "model", UnknownModel),
        ({"target_ratio": 1000.0}, "target_ratio", RatioOutOfRange),
        ({"target_ratio": [1.2, 1000.0]}, "target_ratio.1", RatioOutOfRange),
        ({"target_ratio": None, "target_bytes": "1TB"}, "target_bytes", Refused),
        ({"precision": 4}, "precision", Refused),
        (
            {"method": "auto", "target_ratio": 2, "distillation": {"length": 64, "sharded": True}},
            "distillation.sharded",
            Refused,
        ),
        ({"precision": 16, "method": "quantisation"}, "precision", Refused),
        ({"method": "tqcompressor"}, "method", MethodDoesNotFit),
        ({"calibration": {"datasets": ["local:nowhere.txt"]}}, "calibration.datasets.0", UnknownDataset),
        ({"calibration": {"datasets": ["local:calibration.txt"], "length": 512}}, "calibration.length", Refused),
        ({"distillation": {"datasets": ["local:nowhere.txt"]}}, "distillation.datasets.0", UnknownDataset),
        ({"distillation": {"length": 512}}, "distillation.length", Refused),
        (
            {"distillation": {"trainable": "factors", "length": 64}, "method": "width"},
            "distillation.trainable",
            Refused,
        ),
        ({"distillation": {"length": 64, "phases": 2}, "method": "width"}, "distillation.phases", Refused),
        ({"distillation": {"length": 64, "phases": 2}, "method": "width_low_rank"}, "distillation.phases", Refused),
        (
            {"distillation": {"length": 64, "phases": 2}, "method": "auto", "precision": 16},
            "distillation.phases",
            Refused,
        ),
        ({"distillation": {"length": 64, "phases": 99}}, "distillation.phases", Refused),
        ({"formats": ["safetensors", "dense"], "method": "width"}, "formats.1", Refused),
        ({"distillation": {"datasets": ["local:evaluation.txt"]}}, "evaluation.datasets.0", Refused),
        ({"evaluation": {"datasets": ["local:evaluation.txt"], "window": 512}}, "evaluation.window", Refused),
        ({"formats": ["dense", "safetensors"], "method": "fusion"}, "formats.0", Refused),
        ({"evaluation": {"datasets": ["builtin:nothing"]}}, "evaluation.datasets.0", UnknownDataset),
        ({"evaluation": {"datasets": ["local:calibration.txt"]}}, "evaluation.datasets.0", Refused),
    ],
)
def test_a_wrong_recipe_is_refused_by_field_and_nothing_is_kept(
    service: JobService,
    doorbell: SilentDoorbell,
    tiny: dict[str, Any],
    changes: dict[str, Any],
    field: str,
    error: type[Refused],
) -> None:
    with pytest.raises(error) as refused:
        service.submit(recipe(tiny, **changes))
    assert refused.value.field == field
    assert service.page(None, 10).jobs == ()
    assert doorbell.rung == []


def test_lengths_that_the_client_left_open_fit_the_model(service: JobService, tiny: dict[str, Any]) -> None:
    texts = {"datasets": ["local:calibration.txt"]}
    asked = {"calibration": texts, "evaluation": {"datasets": ["local:evaluation.txt"]}, "distillation": {}}
    job = service.submit(recipe(tiny, **asked))
    assert job.recipe.calibration.length == job.recipe.evaluation.window == 256
    assert job.recipe.distillation is not None
    assert job.recipe.distillation.length == 256


def test_no_block_goes_where_attention_is_scaled_by_its_number(
    service: JobService, tiny_gpt2: dict[str, Any], model_root: Path
) -> None:
    path = model_root / tiny_gpt2["model"].removeprefix("local:") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scale_attn_by_inverse_layer_idx": True}))
    with pytest.raises(Refused, match="scale_attn_by_inverse_layer_idx") as refused:
        service.submit(recipe(tiny_gpt2, method="fusion"))
    assert refused.value.field == "method"
    assert service.submit(recipe(tiny_gpt2, method="width")).state is State.QUEUED


def test_a_model_of_an_inferred_architecture_is_taken_where_the_recipe_says_so(
    service: JobService, tiny: dict[str, Any], model_root: Path
) -> None:
    write_tiny_inferred(model_root / "inferred")
    with pytest.raises(UnsupportedModel, match='"architecture": "inferred"') as refused:
        service.submit(recipe(tiny, model="local:inferred"))
    assert refused.value.field == "model"
    job = service.submit(recipe(tiny, model="local:inferred", architecture="inferred"))
    assert (job.source.model_type, job.source.architecture) == ("helium", "inferred")
    assert [warning for warning in job.warnings if "'helium' is not registered" in warning]


def test_a_model_of_a_registered_architecture_carries_no_warning(service: JobService, tiny: dict[str, Any]) -> None:
    job = service.submit(recipe(tiny, architecture="inferred"))
    assert (job.source.architecture, job.warnings) == ("registered", ())


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("rwkv", "state of its own kind"), ("bert", "see those behind them"), ("t5", "no causal language model")],
)
def test_a_model_that_is_not_understood_is_refused_by_name_with_the_reason(
    service: JobService, tiny: dict[str, Any], model_root: Path, model_type: str, reason: str
) -> None:
    path = write_tiny_model(model_root / "other", blocks=1) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    with pytest.raises(UnsupportedModel, match=f"'{model_type}' is not supported: .*{reason}"):
        service.submit(recipe(tiny, model="local:other", architecture="inferred"))


def test_text_that_the_original_writes_itself_is_accepted(service: JobService, tiny: dict[str, Any]) -> None:
    job = service.submit(recipe(tiny, calibration={"datasets": ["teacher:"], "length": 64}))
    assert job.recipe.calibration.datasets == ("teacher:",)


@pytest.mark.parametrize(("method", "form"), [("svd", "dense"), ("auto", "dense")])
def test_a_format_that_may_suit_what_the_method_leaves_is_accepted(
    service: JobService, tiny: dict[str, Any], method: str, form: str
) -> None:
    job = service.submit(recipe(tiny, method=method, precision=16, formats=["safetensors", form]))
    assert job.recipe.formats == ("safetensors", form)


def test_an_unreachable_ratio_is_answered_with_the_range(service: JobService, tiny: dict[str, Any]) -> None:
    with pytest.raises(RatioOutOfRange, match=r"send a number from 1\.\d+ to \d+\.\d+"):
        service.submit(recipe(tiny, target_ratio=1000.0))


def test_key_value_heads_that_the_model_cannot_have_are_answered_with_those_that_it_can(
    service: JobService, tiny: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="can have 1 key/value heads; 2 were asked for") as refused:
        service.submit(recipe(tiny, method={"name": "width", "key_value_heads": 2}))
    assert refused.value.field == "method.key_value_heads"
    assert service.submit(recipe(tiny, method={"name": "width", "key_value_heads": 1})).state is State.QUEUED


def test_attention_that_no_config_can_narrow_is_not_narrowed(service: JobService, tiny_gpt2: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="this gpt2 cannot state") as refused:
        service.submit(recipe(tiny_gpt2, method={"name": "width", "key_value_heads": 1}))
    assert refused.value.field == "method.key_value_heads"


def test_a_ratio_below_what_fewer_heads_leave_is_answered_with_the_range(
    service: JobService, tiny: dict[str, Any]
) -> None:
    with pytest.raises(RatioOutOfRange, match=r"send a number from 1\.1\d+ to"):
        service.submit(recipe(tiny, method={"name": "width", "key_value_heads": 1}, target_ratio=1.01))


@pytest.mark.parametrize(("tied_head", "ratio"), TQCOMPRESSOR_RATIOS.items())
def test_a_preset_answers_to_its_own_ratio_alone(
    service: JobService, tiny_gpt2: dict[str, Any], tied_head: bool, ratio: float
) -> None:
    method = {"name": "tqcompressor", "tied_head": tied_head}
    with pytest.raises(RatioOutOfRange, match=r"send a number from 1\.\d+ to 1\.\d+"):
        service.submit(recipe(tiny_gpt2, method=method, target_ratio=ratio * 1.01))
    assert service.submit(recipe(tiny_gpt2, method=method, target_ratio=ratio)).state is State.QUEUED


def test_a_baseline_of_a_single_block_is_refused(service: JobService, tiny: dict[str, Any], model_root: Path) -> None:
    write_tiny_model(model_root / "single", blocks=1)
    recipe = Recipe.model_validate({**tiny, "model": "local:single", "target_ratio": 1.1})
    service.submit(recipe)
    evaluation = recipe.evaluation.model_copy(update={"baseline": True})
    with pytest.raises(Refused, match="single block") as refused:
        service.submit(recipe.model_copy(update={"evaluation": evaluation}))
    assert refused.value.field == "evaluation.baseline"


def test_pages_follow_each_other_by_cursor(service: JobService, tiny: dict[str, Any]) -> None:
    ids = [service.submit(recipe(tiny)).id for _ in range(3)]
    first = service.page(None, 2)
    second = service.page(first.next, 2)
    assert [job.id for job in first.jobs + second.jobs] == ids[::-1]
    assert second.next is None


def test_pages_can_be_of_one_state(service: JobService, tiny: dict[str, Any]) -> None:
    waiting, cancelled = service.submit(recipe(tiny)), service.submit(recipe(tiny))
    service.cancel(cancelled.id)
    assert [job.id for job in service.page(None, 10, JobFilter(State.QUEUED)).jobs] == [waiting.id]


@pytest.mark.parametrize("cursor", ["", "nonsense", "ZGVhZGJlZWY=", "MjAyNi0wMS0wMSBq"])
def test_a_cursor_that_is_not_ours_is_refused(service: JobService, cursor: str) -> None:
    with pytest.raises(Refused) as refused:
        service.page(cursor, 10)
    assert refused.value.field == "after"


def test_what_does_not_exist_is_not_found(service: JobService) -> None:
    for call in (service.get, service.cancel, service.artifacts):
        with pytest.raises(JobNotFound):
            call("job_unknown")


def test_cancelling_an_ended_job_says_how_it_ended(
    service: JobService, sessions: Sessions, tiny: dict[str, Any]
) -> None:
    job = service.submit(recipe(tiny))
    with sessions.begin() as session:
        store.claim(session, job.id, "worker", 60.0)
        failure = reaper.worker_lost(store.get(session, job.id))
        store.fail(session, job.id, 1, failure)
    with pytest.raises(JobEnded, match="has failed"):
        service.cancel(job.id)


def test_no_path_of_the_server_is_in_an_answer(service: JobService, tiny: dict[str, Any], model_root: Path) -> None:
    job = service.submit(recipe(tiny))
    assert str(model_root.parent) not in job.model_dump_json()


def test_bytes_are_kept_as_the_ratio_that_they_are_of_the_model(service: JobService, tiny: dict[str, Any]) -> None:
    parameters = service.submit(recipe(tiny)).source.parameters
    sent = recipe(tiny, method="quantisation", target_ratio=None, target_bytes=parameters)
    assert service.submit(sent).recipe.target_ratio == 2.0


def test_more_jobs_than_may_wait_are_refused_until_one_is_gone(service: JobService, tiny: dict[str, Any]) -> None:
    service.settings = service.settings.model_copy(update={"max_queued": 2})
    first = service.submit(recipe(tiny))
    service.submit(recipe(tiny))
    with pytest.raises(QueueFull, match="2 jobs are waiting"):
        service.submit(recipe(tiny))
    service.cancel(first.id)
    assert service.submit(recipe(tiny)).state is State.QUEUED


def test_a_model_that_is_larger_than_the_operator_allows_is_refused(service: JobService, tiny: dict[str, Any]) -> None:
    service.settings = service.settings.model_copy(update={"max_model_parameters": 1000})
    with pytest.raises(Refused, match="up to 1,000") as refused:
        service.submit(recipe(tiny))
    assert refused.value.field == "model"
    assert service.page(None, 20).jobs == ()


def test_auto_may_leave_a_gguf_where_bits_reach_the_ratio(service: JobService, tiny: dict[str, Any]) -> None:
    sent = recipe(tiny, method="auto", target_ratio=2, formats=["safetensors", "gguf"])
    assert service.submit(sent).state is State.QUEUED
    with pytest.raises(Refused, match="factored"):
        service.submit(recipe(tiny, method="auto", precision=16, formats=["safetensors", "gguf"]))

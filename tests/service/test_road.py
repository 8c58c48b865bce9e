"""The whole road with real processes: a posted recipe becomes a checkpoint on the client's disk."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from app.client import Client
from app.contract.job import Job, State
from app.contract.recipe import Recipe
from app.serve import running_service
from app.settings import Settings
from tests.support.hub import running_hub
from tests.support.text_models import TQCOMPRESSOR_RATIOS, amplify_blocks
from workers.compression.spec.methods import METHODS, PlanningMethod

OPEN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, loading = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
ids = AutoTokenizer.from_pretrained(sys.argv[1])("the quick", return_tensors="pt").input_ids
assert model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids.shape[1] + 4
assert "app" not in sys.modules and "workers" not in sys.modules
print(sum(parameter.numel() for parameter in model.parameters()))
"""


@pytest.fixture
def client(settings: Settings, engine: Engine, tmp_path: Path) -> Iterator[Client]:
    with (
        running_service(settings.model_copy(update={"port": 0}), log_dir=tmp_path) as service,
        Client(service.address) as client,
    ):
        yield client


def finish(client: Client, recipe: dict[str, Any]) -> Job:
    *_, job = client.wait(client.submit(Recipe.model_validate(recipe)).id)
    assert job.state is State.SUCCEEDED, job.error
    return job


def open_elsewhere(client: Client, job: Job, directory: Path) -> int:
    """Downloads the checkpoint and opens it as a stranger; returns the distinct parameters that it has there."""
    checkpoint = directory / "checkpoint"
    client.download(job.id, checkpoint)
    return open_as_a_stranger(checkpoint)


def open_as_a_stranger(checkpoint: Path) -> int:
    assert (checkpoint / "compression_report.json").is_file()
    opened = subprocess.run(
        [sys.executable, "-I", "-c", OPEN, str(checkpoint)],
        cwd=checkpoint.parent,
        env={"HF_HOME": str(checkpoint.parent / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert opened.returncode == 0, opened.stderr
    return int(opened.stdout.split()[-1])


GENERAL = [name for name, method in METHODS.items() if isinstance(method, PlanningMethod) and name != "tqcompressor"]
"""Every method that plans and is for any architecture."""


@pytest.mark.parametrize("method", GENERAL)
def test_a_posted_job_becomes_a_checkpoint_that_stock_transformers_opens(
    client: Client, tiny: dict[str, Any], tmp_path: Path, method: str
) -> None:
    job = finish(client, {**tiny, "method": method})
    assert job.achieved_ratio == pytest.approx(1.3, rel=0.005)
    assert job.metrics is not None
    assert job.metrics.before.parameters / job.metrics.after.parameters == job.achieved_ratio
    assert 0 < open_elsewhere(client, job, tmp_path) <= job.metrics.after.parameters


def test_several_ratios_become_as_many_checkpoints_that_stock_transformers_opens(
    client: Client, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = finish(client, {**tiny, "method": "width", "target_ratio": [1.15, 1.3]})
    assert job.metrics is not None
    assert [result.directory for result in job.sweep] == ["1.15", "1.3"]
    assert (job.metrics, job.achieved_ratio) == (job.sweep[0].metrics, job.sweep[0].achieved_ratio)
    client.download(job.id, tmp_path / "sweep")
    for result in job.sweep:
        assert open_as_a_stranger(tmp_path / "sweep" / result.directory) == result.metrics.after.parameters


def test_a_result_below_its_gate_fails_the_job_and_can_be_downloaded(
    client: Client, tiny: dict[str, Any], model_root: Path, tmp_path: Path
) -> None:
    amplify_blocks(model_root / "tiny")
    evaluation = {**tiny["evaluation"], "gate": {"min_top1_agreement": 1.0}, "baseline": True}
    *_, job = client.wait(client.submit(Recipe.model_validate({**tiny, "evaluation": evaluation})).id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "quality_gate"
    assert "top-1 agreement on local:evaluation.txt" in job.error.message
    assert job.metrics is not None
    assert job.metrics.baseline is not None
    assert 0 < open_elsewhere(client, job, tmp_path) <= job.metrics.after.parameters


def test_the_report_of_a_fused_model_says_which_blocks_went_and_why(
    client: Client, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = finish(client, {**tiny, "method": "fusion", "target_ratio": 1.5})
    open_elsewhere(client, job, tmp_path)
    (removed,) = report_of(tmp_path)["removed_blocks"]
    assert removed["scores"][str(removed["block"])] == min(removed["scores"].values())
    assert not list((tmp_path / "checkpoint").glob("*.py"))


def test_the_report_says_what_auto_tried_and_chose(client: Client, tiny: dict[str, Any], tmp_path: Path) -> None:
    open_elsewhere(client, finish(client, {**tiny, "method": "auto"}), tmp_path)
    report = report_of(tmp_path)
    assert report["tried"].keys() == {"low_rank", "width_low_rank", "width", "fusion"}
    assert report["tried"][report["method"]] == min(report["tried"].values())


def report_of(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "checkpoint" / "compression_report.json").read_text())
    return report


@pytest.mark.parametrize(("tied_head", "ratio"), TQCOMPRESSOR_RATIOS.items())
def test_a_published_configuration_goes_the_same_way(
    client: Client, tiny_gpt2: dict[str, Any], tmp_path: Path, tied_head: bool, ratio: float
) -> None:
    method = {"name": "tqcompressor", "tied_head": tied_head}
    job = finish(client, {**tiny_gpt2, "method": method, "target_ratio": ratio})
    assert job.achieved_ratio == pytest.approx(ratio, rel=0.005)
    assert job.metrics is not None
    indices = 2 * (64 + 256) + 64 + 32
    assert open_elsewhere(client, job, tmp_path) == job.metrics.after.parameters - indices


def test_a_private_model_of_the_hub_is_compressed_at_its_commit_and_the_token_is_nowhere(
    settings: Settings, engine: Engine, tiny: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    with running_hub() as hub:
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
        repository = hub.add("team/tiny", files)
        repository.private, hub.token = True, "hf_a_secret_token"
        changes = {"port": 0, "hub_enabled": True, "hub_endpoint": hub.endpoint, "hub_token": SecretStr(hub.token)}
        with (
            running_service(settings.model_copy(update=changes), log_dir=tmp_path / "logs") as service,
            Client(service.address) as client,
        ):
            job = finish(client, {**tiny, "model": "team/tiny"})
    assert job.source.revision == repository.commit
    assert hub.token not in job.model_dump_json()
    for path in [*(tmp_path / "logs").iterdir(), *settings.data_dir.rglob("*.json")]:
        assert hub.token not in path.read_text()

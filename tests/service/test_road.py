"""The whole road with real processes: a posted recipe becomes a checkpoint on the client's disk."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app import serve
from app.settings import ServerSettings
from modelpress.client import Client
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from modelpress.spec.methods import METHODS, PlanningMethod
from tests.support.processes import serve_recorded
from tests.support.service import delete_jobs, service_settings, tiny_recipe
from tests.support.strangers import Stranger, finish, stranger
from tests.support.text_models import TQCOMPRESSOR_RATIOS, amplify_blocks, write_tiny_gpt2, write_tiny_mixture


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


@pytest.fixture(scope="module")
def settings(servers: ServerSettings, directory: Path) -> ServerSettings:
    return service_settings(servers, directory)


@pytest.fixture(scope="module")
def client(settings: ServerSettings, migrated: Engine, directory: Path) -> Iterator[Client]:
    """A client of one service for all tests, whose worker computes with the recorded meter."""
    delete_jobs(migrated)
    with pytest.MonkeyPatch.context() as patch:
        serve_recorded(patch)
        with (
            serve.running_service(settings.model_copy(update={"port": 0}), log_dir=directory) as service,
            Client(service.address, api_key=service.first_key) as client,
        ):
            yield client


@pytest.fixture(scope="module")
def model_root(settings: ServerSettings) -> Path:
    (root,) = settings.model_roots
    return root


@pytest.fixture(scope="module")
def tiny(settings: ServerSettings, tiny_model: Path, model_root: Path) -> dict[str, Any]:
    (data_root,) = settings.data_roots
    return tiny_recipe(tiny_model, model_root, data_root)


@pytest.fixture(scope="module")
def tiny_gpt2(tiny: dict[str, Any], model_root: Path) -> dict[str, Any]:
    write_tiny_gpt2(model_root / "tiny-gpt2")
    return {**tiny, "model": "local:tiny-gpt2"}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Stranger]:
    with stranger() as process:
        yield process


SPECIAL = {"tqcompressor", "quantisation", "experts"}
"""Methods that are for one architecture, or take bits and no parameters."""
GENERAL = [name for name, method in METHODS.items() if isinstance(method, PlanningMethod) and name not in SPECIAL]
"""Every method that takes parameters from any architecture."""
ALIKE = {"width_low_rank", "width", "fusion", "kronecker", "svd", "fusegpt"}
"""Methods whose jobs go the way that another one tried here goes; the battery of the methods tries their weights."""


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.full] if name in ALIKE else []) for name in GENERAL]
)
def test_a_posted_job_becomes_a_checkpoint_that_stock_transformers_opens(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], tmp_path: Path, method: str
) -> None:
    job = finish(client, {**tiny, "method": method})
    assert job.achieved_ratio == pytest.approx(1.3, rel=0.005)
    assert job.metrics is not None
    assert job.metrics.before.parameters / job.metrics.after.parameters == job.achieved_ratio
    assert 0 < elsewhere.downloaded(client, job, tmp_path) <= job.metrics.after.parameters


def test_a_model_of_fewer_bits_is_a_checkpoint_that_stock_transformers_opens(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = finish(client, {**tiny, "method": "auto", "target_ratio": 2})
    assert job.metrics is not None
    assert job.achieved_ratio is not None and 2 * 0.995 <= job.achieved_ratio < 2.2
    assert job.metrics.after.parameters == job.metrics.before.parameters
    assert elsewhere.downloaded(client, job, tmp_path) > 0
    assert report_of(tmp_path)["method"] == "quantisation"


def test_several_ratios_become_as_many_checkpoints_that_stock_transformers_opens(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = finish(client, {**tiny, "method": "width", "target_ratio": [1.15, 1.3]})
    assert job.metrics is not None
    assert [result.directory for result in job.sweep] == ["1.15", "1.3"]
    assert (job.metrics, job.achieved_ratio) == (job.sweep[0].metrics, job.sweep[0].achieved_ratio)
    client.download(job.id, tmp_path / "sweep")
    for result in job.sweep:
        assert elsewhere.parameters(tmp_path / "sweep" / result.directory) == result.metrics.after.parameters


def test_a_result_below_its_gate_fails_the_job_and_can_be_downloaded(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], model_root: Path, tmp_path: Path
) -> None:
    amplify_blocks(shutil.copytree(model_root / "tiny", model_root / "amplified"))
    evaluation = {**tiny["evaluation"], "gate": {"min_top1_agreement": 1.0}, "baseline": True}
    recipe = {**tiny, "model": "local:amplified", "evaluation": evaluation}
    *_, job = client.wait(client.submit(Recipe.model_validate(recipe)).id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "quality_gate"
    assert "top-1 agreement on local:evaluation.txt" in job.error.message
    assert job.metrics is not None
    assert job.metrics.baseline is not None
    assert 0 < elsewhere.downloaded(client, job, tmp_path) <= job.metrics.after.parameters


def test_a_mixture_loses_experts_and_the_report_says_which_stay(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], model_root: Path, tmp_path: Path
) -> None:
    write_tiny_mixture(model_root / "mixture")
    job = finish(client, {**tiny, "model": "local:mixture", "method": "experts", "target_ratio": 1.3, "precision": 16})
    assert job.metrics is not None
    assert job.achieved_ratio is not None and job.achieved_ratio >= 1.3 * 0.995
    assert elsewhere.downloaded(client, job, tmp_path) == job.metrics.after.parameters
    removed = report_of(tmp_path)["removed_experts"]
    assert len({len(mixture["kept"]) for mixture in removed}) == 1
    assert len(removed) == 2


def test_the_report_of_a_fused_model_says_which_blocks_went_and_why(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job = finish(client, {**tiny, "method": "fusion", "target_ratio": 1.5})
    elsewhere.downloaded(client, job, tmp_path)
    (removed,) = report_of(tmp_path)["removed_blocks"]
    assert removed["scores"][str(removed["block"])] == min(removed["scores"].values())
    assert not list((tmp_path / "checkpoint").glob("*.py"))


def test_the_report_says_what_auto_tried_and_chose(
    client: Client, elsewhere: Stranger, tiny: dict[str, Any], tmp_path: Path
) -> None:
    elsewhere.downloaded(client, finish(client, {**tiny, "method": "auto", "precision": 16}), tmp_path)
    report = report_of(tmp_path)
    assert report["tried"].keys() == {"low_rank", "width_low_rank", "width", "fusion"}
    assert report["tried"][report["method"]] == min(report["tried"].values())


def report_of(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "checkpoint" / "compression_report.json").read_text())
    return report


@pytest.mark.parametrize(
    ("tied_head", "ratio"),
    [
        pytest.param(tied_head, ratio, marks=[] if tied_head else [pytest.mark.full])
        for tied_head, ratio in TQCOMPRESSOR_RATIOS.items()
    ],
)
def test_a_published_configuration_goes_the_same_way(
    client: Client, elsewhere: Stranger, tiny_gpt2: dict[str, Any], tmp_path: Path, tied_head: bool, ratio: float
) -> None:
    method = {"name": "tqcompressor", "tied_head": tied_head}
    job = finish(client, {**tiny_gpt2, "method": method, "target_ratio": ratio})
    assert job.achieved_ratio == pytest.approx(ratio, rel=0.005)
    assert job.metrics is not None
    indices = 2 * (64 + 256) + 64 + 32
    assert elsewhere.downloaded(client, job, tmp_path) == job.metrics.after.parameters - indices

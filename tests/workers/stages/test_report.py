"""What the report of a job says, against the files that it is about."""

import hashlib
import json
from pathlib import Path

import pytest

from modelpress.contract.report import CompressionReport
from modelpress.spec.headers import stored_tensors
from modelpress.spec.methods.fusion import FusionOptions
from modelpress.spec.methods.width import WidthOptions
from modelpress.spec.steps import Narrow
from tests.support.jobs import done, small_job
from tests.support.text_models import write_tiny_inferred
from workers.messages import Assignment


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    """A job on a model that states a licence."""
    job = small_job(tmp_path_factory.mktemp("job"))
    (job.model_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (job.model_path / "NOTICE").write_text("Made by somebody.")
    return job.model_copy(update={"revision": "a" * 40, "text_revisions": {"local:a.txt": "b" * 40}})


@pytest.fixture(scope="module")
def factored(asked: Assignment) -> Path:
    return done(asked).package


@pytest.fixture(scope="module")
def fused(asked: Assignment) -> Path:
    recipe = asked.recipe.model_copy(update={"method": FusionOptions(), "target_ratio": 1.5})
    return done(asked.model_copy(update={"recipe": recipe, "work_dir": asked.work_dir / "fused"})).package


def report_on(package: Path) -> CompressionReport:
    return CompressionReport.model_validate_json((package / "compression_report.json").read_bytes())


@pytest.mark.parametrize("result", ["factored", "fused"])
def test_its_matrices_hold_what_the_package_stores_but_vectors(result: str, request: pytest.FixtureRequest) -> None:
    package: Path = request.getfixturevalue(result)
    report = report_on(package)
    vectors = sum(tensor.shape[0] for name, tensor in stored_tensors(package).items() if name.endswith("norm.weight"))
    assert sum(site.parameters_after for site in report.sites) == report.metrics.after.parameters - vectors
    assert {site.role for site in report.sites if site.block is None} == {"model.embed_tokens"}
    assert {site.role for site in report.sites} >= {"self_attn.q_proj", "mlp.down_proj"}


def test_a_factored_matrix_has_a_structure_and_an_error(factored: Path) -> None:
    changed = [site for site in report_on(factored).sites if site.structure is not None]
    assert changed
    for site in changed:
        assert site.parameters_after < site.parameters_before
        assert site.relative_error is not None
        assert 0 < site.relative_error < 1


def test_a_removed_block_keeps_nothing(fused: Path) -> None:
    report = report_on(fused)
    gone = {removed.block for removed in report.removed_blocks}
    assert len(gone) == 1
    for site in report.sites:
        assert (site.parameters_after == 0) == (site.block in gone)


def test_it_says_by_which_criterion_blocks_went(asked: Assignment, fused: Path, factored: Path) -> None:
    changes = {"method": FusionOptions(criterion="block_influence"), "target_ratio": 1.5}
    recipe = asked.recipe.model_copy(update=changes)
    chosen = done(asked.model_copy(update={"recipe": recipe, "work_dir": asked.work_dir / "chosen"})).package
    criteria = [{gone.criterion for gone in report_on(package).removed_blocks} for package in (fused, chosen, factored)]
    assert criteria == [{"loss_after_removal"}, {"block_influence"}, set()]


def test_narrowed_attention_is_reported_as_the_package_has_it(asked: Assignment) -> None:
    recipe = asked.recipe.model_copy(update={"method": WidthOptions(key_value_heads=1), "target_ratio": 1.4})
    package = done(asked.model_copy(update={"recipe": recipe, "work_dir": asked.work_dir / "narrowed"})).package
    config = json.loads((package / "config.json").read_text())
    assert config["num_key_value_heads"] == 1
    assert report_on(package).steps == (Narrow(intermediate_size=config["intermediate_size"], key_value_heads=1),)
    assert report_on(package).achieved_ratio == pytest.approx(1.4, rel=0.02)


def test_model_and_text_are_recorded_by_their_digests(asked: Assignment, factored: Path) -> None:
    record = report_on(factored).reproducibility
    weights = (asked.model_path / "model.safetensors").read_bytes()
    assert record.original.sha256["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "tokenizer.json"} <= record.original.sha256.keys()
    assert record.original.revision == "a" * 40
    assert {name: text.sha256 for name, text in record.texts.items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in asked.texts.items()
    }
    assert record.texts["local:a.txt"].revision == "b" * 40
    assert record.environment.threads == 1
    assert {"python", "modelpress", "torch", "transformers", "safetensors"} <= record.versions.keys()


def test_the_same_recipe_gives_the_same_weights_and_plots_bit_for_bit(asked: Assignment, factored: Path) -> None:
    again = done(asked.model_copy(update={"work_dir": asked.work_dir / "again"})).package
    names = {path.relative_to(factored) for path in factored.rglob("*") if path.is_file()}
    measured = {Path("compression_report.json"), Path("README.md"), Path("SHA256SUMS")}
    assert names == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert Path("model.safetensors") in names
    for name in names - measured:
        assert (factored / name).read_bytes() == (again / name).read_bytes(), name


def test_the_sums_cover_the_plots_and_the_card_embeds_them(factored: Path) -> None:
    plots = {path.relative_to(factored).as_posix() for path in (factored / "plots").iterdir()}
    assert plots >= {"plots/before_and_after.png", "plots/allocation.png", "plots/error_per_site.png"}
    sums = dict(reversed(line.split("  ")) for line in (factored / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(factored).as_posix(): path for path in factored.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    card = (factored / "README.md").read_text()
    assert all(f"]({name})" in card for name in plots)


def test_the_licence_is_that_of_the_original(factored: Path) -> None:
    assert "license: apache-2.0" in (factored / "README.md").read_text().split("---\n")[1]
    assert (factored / "NOTICE").read_text() == "Made by somebody."


def test_it_warns_of_an_architecture_that_is_inferred(asked: Assignment, factored: Path) -> None:
    inferred = write_tiny_inferred(asked.model_path.parent / "inferred")
    recipe = asked.recipe.model_copy(update={"method": WidthOptions()})
    work = asked.work_dir / "inferred"
    package = done(asked.model_copy(update={"recipe": recipe, "model_path": inferred, "work_dir": work})).package
    (warning,) = report_on(package).warnings
    assert "'helium' is not registered" in warning
    assert warning in (package / "README.md").read_text()
    assert report_on(factored).warnings == ()

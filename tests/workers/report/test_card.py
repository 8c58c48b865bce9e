"""The model card: what the hub reads of it, and what it promises people."""

from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from modelpress.contract.distillation import Distillation
from modelpress.contract.job import TaskMetric, TaskResult
from modelpress.contract.recipe import Calibration
from modelpress.contract.report import CompressionReport
from modelpress.spec.steps import Narrow
from tests.support.reports import TEXTS, distillation_report, factored_report, fused_report
from workers.report.card import model_card
from workers.report.original import front_matter_of
from workers.report.plots import Plot


def read(report: CompressionReport, **original: object) -> ModelCardData:
    """The front matter as the hub's own library reads it."""
    return ModelCard(model_card(report, original, [], own_code=True)).data


def with_model(reference: str) -> CompressionReport:
    report = factored_report()
    return report.model_copy(update={"recipe": report.recipe.model_copy(update={"model": reference})})


def test_the_hub_learns_from_which_model_and_which_text_it_was_made() -> None:
    data = read(factored_report())
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["base_model_relation"] == "finetune"
    assert data.datasets == ["Salesforce/wikitext"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")


def test_the_hub_learns_what_was_measured() -> None:
    results = read(factored_report()).eval_results
    assert results is not None
    of_the_hub, local = results
    assert (of_the_hub.dataset_type, of_the_hub.dataset_config, of_the_hub.dataset_split) == (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "test",
    )
    assert (of_the_hub.metric_type, of_the_hub.metric_value) == ("perplexity", 34.02)
    assert (local.dataset_name, local.metric_value) == ("state-of-the-union.txt", 53.41)


def test_a_local_model_and_local_text_are_not_said_to_be_on_the_hub() -> None:
    report = with_model("local:mine")
    recipe = report.recipe.model_copy(
        update={
            "calibration": report.recipe.calibration.model_copy(update={"datasets": ("local:a.txt",)}),
            "distillation": None,
        }
    )
    data = read(report.model_copy(update={"recipe": recipe}))
    assert data.base_model is None
    assert "base_model_relation" not in data
    assert data.datasets is None


def test_licence_and_language_are_those_of_the_original() -> None:
    stated = {
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "https://example.org/l",
        "language": ["en"],
    }
    data = read(factored_report(), **stated, tags=["not inherited"])
    assert {name: data[name] for name in stated} == stated
    assert "not inherited" not in (data.tags or [])


@pytest.mark.parametrize(("original", "notice"), [({}, "states no licence"), ({"license": "mit"}, "licence: mit")])
def test_the_notice_says_under_which_licence_it_stands(original: dict[str, object], notice: str) -> None:
    assert notice in model_card(factored_report(), original, [], own_code=True)


def test_a_card_of_the_original_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    assert front_matter_of(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert front_matter_of(tmp_path) == {}
    (tmp_path / "README.md").write_text("no front matter")
    assert front_matter_of(tmp_path) == {}


@pytest.mark.parametrize(
    "odd",
    [
        "license: [",
        "1: a number",
        "[a, list]",
        "model-index: [text]",
        "model-index: text",
        "tags: 1",
        "language: &itself [*itself]",
        "license: " + 3000 * "[" + 3000 * "]",
    ],
    ids=range(8),
)
def test_odd_front_matter_of_the_original_fails_no_job(odd: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{odd}\n---\n")
    assert read(factored_report(), **front_matter_of(tmp_path)).library_name == "transformers"


@pytest.mark.parametrize(("stated", "read_as"), [("[no]", ["no"]), ("no", "no"), ("[en, 'no']", ["en", "no"])])
def test_norwegian_stays_a_language(stated: str, read_as: object, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlanguage: {stated}\n---\n")
    assert front_matter_of(tmp_path) == {"language": read_as}
    assert read(factored_report(), **front_matter_of(tmp_path))["language"] == read_as


def test_a_card_of_the_original_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# The original\n")
    assert front_matter_of(tmp_path) == {"license": "apache-2.0", "language": ["en"]}


def test_a_card_that_expands_beyond_all_memory_costs_nothing(tmp_path: Path) -> None:
    tenfold = "\n".join(f"{name}: &{name} [{', '.join(10 * [f'*{before}'])}]" for before, name in pairwise("abcdefghi"))
    (tmp_path / "README.md").write_text(f"---\na: &a [en]\n{tenfold}\nlanguage: *i\n---\n")
    assert front_matter_of(tmp_path) == {}


def test_of_a_card_with_endless_front_matter_only_the_beginning_is_read(tmp_path: Path) -> None:
    fields = "".join(f"field_{number}: 1\n" for number in range(300_000))
    (tmp_path / "README.md").write_text(f"---\n{fields}license: mit\n---\n")
    assert front_matter_of(tmp_path) == {}


@pytest.mark.parametrize("link", ["javascript:alert(1)", "l) <script>", "https://a.b/c d", "[x](y)"])
def test_a_link_to_the_licence_that_is_none_is_left_out(link: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense_name: own\nlicense_link: '{link}'\n---\n")
    assert front_matter_of(tmp_path) == {"license_name": "own"}


@pytest.mark.parametrize("word", ['"\\ud800"', '"a\\nb"', "{a: b}", "7"])
def test_a_licence_that_is_no_word_is_left_out(word: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {word}\nlanguage: [en, {word}]\n---\n")
    assert front_matter_of(tmp_path) == {"language": ["en"]}


def test_trust_is_asked_for_only_where_there_is_code() -> None:
    assert "trust_remote_code" in model_card(factored_report(), {}, [], own_code=True)
    assert "trust_remote_code" not in model_card(fused_report(), {}, [], own_code=False)


def test_every_number_of_the_comparison_stands_in_the_table() -> None:
    card = model_card(factored_report(), {}, [], own_code=True)
    assert "| stored parameters | 134,515,008 | 103,471,936 |" in card
    assert f"| perplexity, `{TEXTS[1]}` | 24.50 | 53.41 |" in card


def with_tasks() -> CompressionReport:
    """A report whose original was not asked."""
    report = factored_report()
    found = {
        "acc": TaskMetric(value=0.42, stderr=0.0494, higher_is_better=True),
        "f1,strict": TaskMetric(value=None, higher_is_better=True),
    }
    tasks = {"arc_easy": TaskResult(version="1.0", examples=100, shots=5, metrics=found)}
    metrics = report.metrics.model_copy(
        update={
            "before": report.metrics.before.model_copy(update={"tasks_skipped": "it does not fit"}),
            "after": report.metrics.after.model_copy(update={"tasks": tasks}),
        }
    )
    return report.model_copy(update={"metrics": metrics})


def test_tasks_stand_in_a_table_of_their_own_with_what_they_were_asked_with() -> None:
    card = model_card(with_tasks(), {}, [], own_code=True)
    assert "| `arc_easy` | 1.0 | 5 | 100 | `acc` | – | 0.4200 ± 0.0494 |" in card
    assert "| `arc_easy` | 1.0 | 5 | 100 | `f1,strict` | – | – |" in card
    assert "it does not fit" in card


def test_the_hub_learns_what_the_result_came_to_on_tasks() -> None:
    results = read(with_tasks()).eval_results
    assert results is not None
    (accuracy,) = results[2:]
    assert (accuracy.dataset_type, accuracy.metric_type, accuracy.metric_value) == ("arc_easy", "acc", 0.42)
    assert accuracy.dataset_args == {"num_few_shot": 5}


def test_without_tasks_a_card_does_not_speak_of_them() -> None:
    assert "lm-eval" not in model_card(factored_report(), {}, [], own_code=True)


def test_plots_are_embedded_by_relative_names() -> None:
    card = model_card(factored_report(), {}, [Plot("plots/allocation.png", "Who keeps what.")], own_code=True)
    assert "![Who keeps what.](plots/allocation.png)" in card


def test_a_dense_export_is_said_not_to_be_smaller() -> None:
    assert "**not smaller**" in model_card(factored_report(formats=("safetensors", "dense")), {}, [], own_code=True)
    assert "**not smaller**" not in model_card(factored_report(), {}, [], own_code=True)


def test_narrowed_attention_is_described() -> None:
    steps = (Narrow(intermediate_size=1400, key_value_heads=2),)
    card = model_card(fused_report(steps=steps), {}, [], own_code=False)
    assert "1400 hidden units in each MLP and 2 key/value heads in each block." in card
    assert "key/value heads" not in model_card(fused_report(), {}, [], own_code=False)


def test_removed_blocks_are_named_with_what_chose_them() -> None:
    card = model_card(fused_report(), {}, [], own_code=False)
    assert "Removed 6 blocks, chosen by `loss_after_removal`." in card
    assert "Blocks removed, in this order: 12, 17, 9, 20, 14, 22." in card


def test_a_training_is_described() -> None:
    assert "262,144 tokens" in model_card(factored_report(distillation=distillation_report()), {}, [], own_code=True)


def test_the_shares_of_a_mixture_are_named() -> None:
    report = factored_report()
    mixture = Calibration(datasets=("builtin:python-docs", "teacher:"), shares=(1, 2))
    mixed = report.model_copy(update={"recipe": report.recipe.model_copy(update={"calibration": mixture})})
    named = "tokens of `builtin:python-docs` (1 of 3), `teacher:` (2 of 3)."
    assert named in model_card(mixed, {}, [], own_code=True)


def test_it_names_every_part_of_the_loss() -> None:
    plain = factored_report(distillation=distillation_report())
    trained = Distillation(temperature=2, cross_entropy_weight=0.5, hidden_weight=2)
    mixed = plain.model_copy(update={"recipe": plain.recipe.model_copy(update={"distillation": trained})})
    ending = "the loss is the divergence from the original's predictions"
    assert f"{ending}.\n" in model_card(plain, {}, [], own_code=True)
    further = (
        " at temperature 2, plus 0.5 times the cross entropy of the text"
        ", plus 2 times the normalised error of the last hidden states"
    )
    assert f"{ending}{further}.\n" in model_card(mixed, {}, [], own_code=True)


def test_a_hostile_name_stays_text() -> None:
    card = model_card(with_model("local:a](https://evil) <b>|`x`"), {}, [], own_code=True)
    assert r"# a\]\(https" not in card
    assert r"evil) \<b\>\|\`x\`, 1.30 times smaller" in card
    assert "`local:a](https://evil) <b>x`" in card

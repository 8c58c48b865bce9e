"""Write the model card, for people and for the hub: what the model is, how it was measured and how it was made.

    text = model_card(report, original, plots, own_code=True)

`original` is the front matter of the original's card, from which licence and language are inherited. Promise: every
claim comes from the report or from the original's card.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from modelpress.contract.job import Metrics
from modelpress.contract.report import CompressionReport
from modelpress.spec.formats import FORMATS, MAIN, Format
from workers.report.making import how_it_was_made
from workers.report.phrases import code, plain
from workers.report.plots import Plot, measured_models

RELATION, ROUNDED = "finetune", "quantized"
"""The hub's relations to the base model: a complete checkpoint with changed weights, and one with rounded weights."""


def model_card(report: CompressionReport, original: Mapping[str, Any], plots: Sequence[Plot], *, own_code: bool) -> str:
    """Return the model card as Markdown.

    Args:
        original: front matter of the original's card.
        plots: the pictures to embed.
        own_code: whether the package has a modelling file, and opens with `trust_remote_code`.
    """
    sections = [
        introduction(report),
        how_to_load(own_code=own_code, rounded=any(each.format == MAIN for each in report.rounding)),
        *other_formats(report),
        results(report, plots),
        how_it_was_made(report),
        reproducibility(report),
        limits(report, own_code),
        licence_notice(report, original),
    ]
    return f"---\n{front_matter(report, original).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def front_matter(report: CompressionReport, original: Mapping[str, Any]) -> ModelCardData:
    """Return the card's metadata for the hub; licence and language are the original's."""
    base = hub_model(report)
    inherited = {
        name: original[name] for name in ("license", "license_name", "license_link", "language") if name in original
    }
    made_from = [
        *report.recipe.calibration.datasets,
        *(report.recipe.distillation.datasets if report.recipe.distillation else ()),
    ]
    datasets = list(dict.fromkeys(hub_dataset(dataset)[0] for dataset in made_from if dataset.startswith("hub:")))
    return ModelCardData(
        base_model=base,
        base_model_relation=(ROUNDED if report.rounding else RELATION) if base else None,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["compressed", "modelpress", report.method],
        model_name=title(report),
        eval_results=[*eval_results(report), *task_results(report)],
        **inherited,
    )


def eval_results(report: CompressionReport) -> Iterator[EvalResult]:
    """Yield the result's perplexities in the hub's form."""
    for dataset, perplexity in report.metrics.after.perplexity.items():
        name, config, split = hub_dataset(dataset)
        yield EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=dataset.partition(":")[2],
            dataset_config=config,
            dataset_split=split,
            dataset_revision=report.reproducibility.texts[dataset].revision,
            metric_type="perplexity",
            metric_name=f"Perplexity, windows of {report.recipe.evaluation.window} tokens",
            metric_value=round(perplexity, 4),
        )


def task_results(report: CompressionReport) -> Iterator[EvalResult]:
    """Yield the result's metrics on tasks in the hub's form. The task stands for its dataset, which is not known."""
    for task, result in report.metrics.after.tasks.items():
        for name, reached in result.metrics.items():
            if reached.value is not None:
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=task,
                    dataset_args=None if result.shots is None else {"num_few_shot": result.shots},
                    metric_type=name,
                    metric_name=f"{name}, {result.examples} examples",
                    metric_value=round(reached.value, 4),
                )


def hub_model(report: CompressionReport) -> str | None:
    """Return 'org/name' of an original from the hub; None for a local one."""
    reference = report.recipe.model
    return None if reference.startswith("local:") else reference.partition("@")[0]


def hub_dataset(dataset: str) -> tuple[str, str | None, str | None]:
    """Return name, configuration and split of a dataset from the hub; only the name of any other."""
    kind, _, name = dataset.partition(":")
    if kind != "hub":
        return name, None, None
    organisation, repository, *rest = name.split("/")
    return f"{organisation}/{repository}", (rest[0] if len(rest) == 2 else None), rest[-1]


def title(report: CompressionReport) -> str:
    """Return the card's title: the original's name and the compression ratio."""
    name = (hub_model(report) or report.recipe.model.removeprefix("local:")).rpartition("/")[2]
    return f"{name}, {report.achieved_ratio:.2f} times smaller"


def introduction(report: CompressionReport) -> str:
    """Return the title and a sentence about the original and both sizes."""
    base = hub_model(report)
    source = f"[{base}](https://huggingface.co/{base})" if base else code(report.recipe.model)
    return (
        f"# {plain(title(report))}\n\n"
        f"{source}, made {report.achieved_ratio:.4g} times smaller by Modelpress{counted(report)}. "
        "The tokenizer is the original's."
    )


def counted(report: CompressionReport) -> str:
    """Return the part of a sentence that states parameters or bytes before and after."""
    before, after = report.metrics.before, report.metrics.after
    if report.rounding:
        return f": {after.bytes / 1e6:,.4g} MB of weights"
    return f": from {before.parameters:,} to {after.parameters:,} stored parameters"


def how_to_load(*, own_code: bool, rounded: bool) -> str:
    """Return the section with the code that loads the model."""
    trust = ", trust_remote_code=True" if own_code else ""
    if rounded:
        needs = "It needs torch, transformers 5 or newer and compressed-tensors 0.20 or newer."
    elif own_code:
        needs = "It needs torch and transformers 4.57 or newer."
    else:
        needs = "It is an ordinary checkpoint of the original's architecture, and opens wherever the original does."
    if own_code:
        needs += " It runs the small Python files beside the weights, which define its layers."
    return f"""## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory"{trust})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory"{trust})
```

{needs}"""


def results(report: CompressionReport, plots: Sequence[Plot]) -> str:
    """Return the section with the measurements, the protocol and the pictures."""
    evaluation = report.recipe.evaluation
    how = (
        f"Perplexity is measured on at most {evaluation.max_tokens:,} tokens of each text in windows of "
        f"{evaluation.window}. The text is not used for calibration or training."
    )
    known = max((protocol.overlap for protocol in report.metrics.protocols.values()), default=0.0)
    if known > 0:
        how += f" Up to {known:.1%} of a text also occurs in the text that the result was made from."
    if report.metrics.baseline is not None:
        how += " The model 'blocks dropped' is a baseline: the original with blocks dropped until it is about as small."
    for text, protocol in report.metrics.protocols.items():
        how += f" The protocol for {code(text)} is `{protocol.id}`."
    pictures = [f"![{plot.caption}]({plot.name})" for plot in plots]
    return "\n\n".join(["## Results", results_table(measured_models(report)), how, *tasks(report), *pictures])


def results_table(models: Mapping[str, Metrics]) -> str:
    """Return the table of all measurements but tasks, with a column per model, by its label."""
    texts = next(iter(models.values())).perplexity
    rows: list[tuple[str, list[float | None], str]] = [
        ("stored parameters", [model.parameters for model in models.values()], "{:,}"),
        ("weights, MB", [model.bytes / 1e6 for model in models.values()], "{:,.1f}"),
    ]
    rows += [
        (f"KL from the original, {code(text)}", [model.kl_divergence.get(text) for model in models.values()], "{:.4f}")
        for text in texts
    ]
    rows += [
        (
            f"top-1 agreement with the original, {code(text)}",
            [model.top1_agreement.get(text) for model in models.values()],
            "{:.1%}",
        )
        for text in texts
    ]
    rows += [
        (f"perplexity, {code(text)}", [model.perplexity.get(text) for model in models.values()], "{:,.2f}")
        for text in texts
    ]
    rows += [
        ("tokens/s, prefill", [model.prefill_tokens_per_second for model in models.values()], "{:,.1f}"),
        ("tokens/s, decoding", [model.decode_tokens_per_second for model in models.values()], "{:,.1f}"),
    ]
    lines = [f"| | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    for name, values, style in rows:
        if any(value is not None for value in values):
            cells = ["–" if value is None else style.format(value) for value in values]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tasks(report: CompressionReport) -> Iterator[str]:
    """Yield the table of results on lm-eval tasks, and why models were not evaluated on them; nothing without tasks."""
    models = measured_models(report)
    measures = dict.fromkeys(
        (task, name) for model in models.values() for task, result in model.tasks.items() for name in result.metrics
    )
    if measures:
        version = report.reproducibility.versions.get("lm_eval", "")
        yield f"Tasks, evaluated by lm-eval {version} for each model in the same way, with standard errors:"
        header = f"| task | version | shots | examples | | {' | '.join(models)} |"
        lines = [header, "|---|" + "---:|" * (4 + len(models))]
        lines += [task_row(task, name, models.values()) for task, name in measures]
        yield "\n".join(lines)
    for name, model in models.items():
        if model.tasks_skipped is not None:
            yield f"The model '{name}' was not evaluated on tasks: {model.tasks_skipped}."


def task_row(task: str, name: str, models: Collection[Metrics]) -> str:
    """Return the table row of one metric of a task."""
    result = next(model.tasks[task] for model in models if task in model.tasks)
    facts = ["–" if fact is None else str(fact) for fact in (result.version, result.shots, result.examples)]
    found = [str(model.task_metric(task, name) or "") or "–" for model in models]
    return f"| {' | '.join([code(task), *facts, code(name), *found])} |"


def other_formats(report: CompressionReport) -> Iterator[str]:
    """Yield the section about formats beside the main checkpoint; nothing if there are none."""
    beside = [FORMATS[name] for name in report.formats if name != MAIN]
    if beside:
        facts = [f"- `{form.name}/`, {form.title}: {form.description}. Opened by {openers(form)}." for form in beside]
        yield "\n".join(["## Other formats", "", *facts])


def format_card(report: CompressionReport, form: Format, original: Mapping[str, Any]) -> str:
    """Return the card for the directory of a format beside the main checkpoint, which may be copied on its own."""
    return (
        f"---\n{front_matter(report, original).to_yaml()}\n---\n\n"
        f"# {plain(title(report))}: {form.title}\n\n"
        f"This directory holds {form.description}. It is opened by {openers(form)}. The compressed checkpoint, its "
        f"measurements and its report are one directory above.\n\n{licence_notice(report, original)}\n"
    )


def openers(form: Format) -> str:
    """Return the engines that open a format, as text."""
    return " and ".join(form.opened_by)


def reproducibility(report: CompressionReport) -> str:
    """Return the section about the original, the seed, versions and the machine."""
    record = report.reproducibility
    original = f"- Original: {code(record.original.reference)}"
    if record.original.revision:
        original += f" at commit `{record.original.revision}`"
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    place = record.environment
    return f"""## Reproducibility

{original}
- Seed: {report.recipe.seed}
- Versions: {versions}
- Computed on {place.device} in {place.dtype}, {place.threads} threads, {place.platform}

`compression_report.json` holds the recipe and the SHA-256 of every file and text that was read. The same recipe on the
same machine gives the same weights bit for bit. `sha256sum --check SHA256SUMS` checks the files here."""


def limits(report: CompressionReport, own_code: bool) -> str:
    """Return the section about the limits of the model."""
    worse = max(
        report.metrics.after.perplexity[text] / before for text, before in report.metrics.before.perplexity.items()
    )
    facts = [
        *report.warnings,
        f"It is not the original: on the texts above its perplexity is up to {worse:.2f} times the original's, and it "
        "may lose more on text, languages or tasks that differ from its calibration.",
        "Abilities that are not measured above, such as safety, factual knowledge or following instructions, must be "
        "evaluated before use. The original's own limits and biases remain.",
    ]
    if own_code:
        facts.append("Engines that do not run code from a checkpoint cannot open it.")
    return "## Limits\n\n" + "\n".join(f"- {fact}" for fact in facts)


def licence_notice(report: CompressionReport, original: Mapping[str, Any]) -> str:
    """Return the section about the original's licence."""
    stated = original.get("license_name") or original.get("license")
    if stated is None:
        notice = "The original states no licence that could be read. Ask its authors before you distribute this model."
    else:
        link = original.get("license_link")
        name = f"[{plain(str(stated))}]({link})" if link else plain(str(stated))
        notice = f"This model is a derivative of the original and under its licence: {name}."
    return f"## Licence\n\n{notice} The original's licence and notice files are beside the weights."

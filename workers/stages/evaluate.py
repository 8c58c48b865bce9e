"""Measure the original, the result and, on request, a baseline, on text that none of them was made from.

Every model is measured from its written files, so the numbers are those of the files that a client downloads. A format
whose weights are rounded is measured with its decoded weights, in floating point. Its speed is therefore that of
the unrounded result; the stage `verify` shows that the format opens as exactly these weights. A model that does not fit
into memory is measured block by block, without speed, peak memory or a sample.

The metrics of each format are durable by themselves.
"""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Comparison, EvaluationProtocol, Metrics
from modelpress.spec.formats import FORMATS, MAIN, Format
from workers.compression.evaluation.fidelity import Fidelity, compare, final_states
from workers.compression.evaluation.protocol import protocol_of
from workers.compression.evaluation.size import stored_size
from workers.compression.evaluation.speed import greedy_sample
from workers.compression.formats.decoded import write_decoded
from workers.compression.models.streamed import StreamedModel
from workers.messages import AttemptFailed
from workers.stages import calibrate, compute, inspect, memory, names, overlap, quantise, tasks, write
from workers.stages.baseline import write_baseline
from workers.stages.context import Context
from workers.stages.stage import Stage

NAME = names.EVALUATE
BASELINE = "baseline"
DECODED = "decoded"
PROMPT = "The capital of France is"
PROBE_SEQUENCES, PROBE_LENGTH = 2, 32
SPEED_PROMPT, SPEED_NEW_TOKENS = 512, 32
PEAK_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class Use:
    """Speed in tokens per second and a sample text: figures that need the whole model in memory."""

    prefill: float | None = None
    decode: float | None = None
    sample: str | None = None


def run(context: Context, directory: Path) -> None:
    """Measure the main checkpoint beside the original, then each format that rounds."""
    rounded = [form for form in write.written(context) if form.name != MAIN and is_rounded(context, form)]
    share = 1 / (1 + len(rounded))
    measure_main(context.within(0.0, share), directory)
    for number, form in enumerate(rounded, start=1):
        if context.assignment.memory_bytes is not None:
            memory.give_back()
        if is_missing(context, metrics_file(form.name)):
            measure_rounded(context.within(number * share, (number + 1) * share), form, directory)


def measure_main(context: Context, directory: Path) -> None:
    """Store the comparison of original and main checkpoint, and the main checkpoint's probe, unless an attempt has."""
    if not is_missing(context, metrics_file(MAIN)) and not is_missing(context, probe_file(MAIN)):
        return
    with measurable(context, FORMATS[MAIN], directory) as result:
        comparison = measured_beside_original(context, result, directory / BASELINE)
        write_probe(context, result, directory / probe_file(MAIN))
        store(context, directory / metrics_file(MAIN), comparison.model_dump_json(indent=1))


def is_rounded(context: Context, form: Format) -> bool:
    """Return whether weights were rounded for a format, so that it is measured on its own."""
    return write.sizes(context)[form.name].rounded


@contextmanager
def measurable(context: Context, form: Format, directory: Path) -> Iterator[Path]:
    """Hold a checkpoint of a format's weights that can be measured: the written one, or a copy with decoded weights."""
    if not is_rounded(context, form):
        yield write.directory_of(context, form.name)
        return
    decoded = directory / DECODED / form.name
    shutil.rmtree(decoded, ignore_errors=True)
    decoded.parent.mkdir(exist_ok=True)
    write_decoded(quantise.overlay_for(context, form), decoded)
    yield decoded
    shutil.rmtree(decoded.parent)


def is_missing(context: Context, name: str) -> bool:
    """Return whether no attempt has stored this file."""
    return context.bench.finished_part(NAME, name) is None


def store(context: Context, path: Path, content: str) -> None:
    """Write a file of this stage's result and make it durable."""
    path.write_text(content)
    context.bench.finish_part(path)


def metrics_file(name: str) -> str:
    """Return the name of the file with a format's metrics; the main format's holds the whole comparison."""
    return f"{name}.json"


def probe_file(name: str) -> str:
    """Return the name of the file with a format's probe: token ids and the logits that it computes for them."""
    return f"{name}.probe.safetensors"


def measured_beside_original(context: Context, result: Path, baseline: Path) -> Comparison:
    """Return the metrics of the original, the checkpoint `result` of the main format and, on request, a baseline.

    The baseline is written to the directory `baseline` and removed afterwards.
    """
    measured = [inspect.model_dir(context), result]
    if context.assignment.recipe.evaluation.baseline:
        context.progress(0.0, "dropping blocks for the baseline")
        shutil.rmtree(baseline, ignore_errors=True)
        write_baseline(context, result, baseline)
        measured.append(baseline)
    comparison = comparison_of(context, measured)
    shutil.rmtree(baseline, ignore_errors=True)
    return comparison


def measure_rounded(context: Context, form: Format, directory: Path) -> None:
    """Measure the dequantised weights of a format, and store its metrics and its probe."""
    context.progress(0.0, f"measuring {form.title}")
    with measurable(context, form, directory) as decoded:
        predictions = predictions_of(context, [inspect.model_dir(context), decoded])
        found = {dataset: result for dataset, (_, result) in predictions.items()}
        measured = metrics_of(context, decoded, found, is_original=False)
        (metrics,) = tasks.with_tasks(context, [decoded], [measured])
        write_probe(context, decoded, directory / probe_file(form.name))
    metrics = with_stored_size(context, form, metrics)
    store(context, directory / metrics_file(form.name), metrics.model_dump_json())


def with_stored_size(context: Context, form: Format, metrics: Metrics) -> Metrics:
    """Return the metrics of decoded weights with the bytes that the format stores of them."""
    return metrics.model_copy(update={"bytes": write.sizes(context)[form.name].bytes})


def comparison_of(context: Context, directories: Sequence[Path]) -> Comparison:
    """Measure the models in `directories`: the original, the result and, if there is a third, the baseline."""
    predictions = predictions_of(context, directories)
    measured = []
    for number, directory in enumerate(directories):
        context.progress(0.2 + 0.4 * number / len(directories), "measuring speed")
        found = {dataset: fidelities[number] for dataset, fidelities in predictions.items()}
        measured.append(metrics_of(context, directory, found, is_original=number == 0))
    context.progress(0.6, "measuring memory")
    peaks = peaks_of(context, directories)
    if is_rounded(context, FORMATS[MAIN]):
        # The copy with decoded weights takes more memory than the checkpoint that it stands for.
        peaks = [peak if number != 1 else None for number, peak in enumerate(peaks)]
        measured[1] = with_stored_size(context, FORMATS[MAIN], measured[1])
    measured = [
        metrics.model_copy(update={"peak_memory_bytes": peak}) for metrics, peak in zip(measured, peaks, strict=True)
    ]
    before, after, *baseline = tasks.with_tasks(context, directories, measured)
    return Comparison(
        before=before, after=after, baseline=baseline[0] if baseline else None, protocols=protocols_of(context)
    )


def predictions_of(context: Context, directories: Sequence[Path]) -> dict[str, tuple[Fidelity, ...]]:
    """Return, for each evaluation dataset, the fidelity of each model to the first one, the original.

    Raises:
        AttemptFailed: a perplexity or a divergence is not finite.
    """
    original, *others = [compute.open_model(context, directory) for directory in directories]
    evaluations = calibrate.evaluations(context)
    found = {}
    for number, (dataset, windows) in enumerate(evaluations.items()):
        context.progress(0.2 * number / len(evaluations), f"comparing predictions on {dataset}")
        found[dataset] = compare(original, others, windows)
        require_numbers(dataset, found[dataset])
    return found


def require_numbers(dataset: str, found: Sequence[Fidelity]) -> None:
    """Check that every perplexity and divergence is finite, as JSON requires. The first model is the original.

    Raises:
        AttemptFailed: one of them is not.
    """
    for place, fidelity in enumerate(found):
        if not (math.isfinite(fidelity.perplexity) and math.isfinite(fidelity.divergence)):
            whose = "a compressed model" if place else "the original"
            raise AttemptFailed(FailureCode.NOT_FINITE, f"the perplexity of {whose} on {dataset} is not finite")


def metrics_of(context: Context, directory: Path, found: Mapping[str, Fidelity], *, is_original: bool) -> Metrics:
    """Return the metrics of one model; `found` has its fidelity to the original on each dataset."""
    size, model = stored_size(directory), compute.open_model(context, directory)
    use = use_of(context, model.whole()) if memory.holds(context, model) else Use()
    compared = {} if is_original else found
    return Metrics(
        parameters=size.parameters,
        bytes=size.bytes,
        perplexity={dataset: each.perplexity for dataset, each in found.items()},
        kl_divergence={dataset: each.divergence for dataset, each in compared.items()},
        top1_agreement={dataset: each.agreement for dataset, each in compared.items()},
        prefill_tokens_per_second=use.prefill,
        decode_tokens_per_second=use.decode,
        sample=use.sample,
    )


def peaks_of(context: Context, directories: Sequence[Path]) -> list[int | None]:
    """Return the peak memory in bytes of each model; None for all of them if one does not fit into memory."""
    models = [compute.open_model(context, directory) for directory in directories]
    if not all(memory.holds(context, model) for model in models):
        return [None] * len(models)
    length = prompt_length(context)
    # On a GPU, the fresh processes need the memory that torch caches unused here.
    torch.cuda.empty_cache()
    return context.meter.peak_memory(
        directories,
        trusted=directories[1:],
        prompt=length,
        new_tokens=min(SPEED_NEW_TOKENS, length),
        dtype=models[0].dtype,
        device=models[0].device,
        timeout=PEAK_TIMEOUT_SECONDS,
    )


def use_of(context: Context, whole: PreTrainedModel) -> Use:
    """Return the speed and a sample text of a whole model."""
    length = prompt_length(context)
    tokenizer = inspect.tokenizer_of(context)
    pace = context.meter.speed(whole, prompt=length, new_tokens=min(SPEED_NEW_TOKENS, length))
    sample = greedy_sample(whole, tokenizer, PROMPT)
    return Use(pace.prefill, pace.decode, None if sample is None else sample.replace("\0", "\ufffd"))


def prompt_length(context: Context) -> int:
    """Return the prompt length, in tokens, for measuring speed and memory; as many new tokens fit behind it."""
    positions: int = AutoConfig.from_pretrained(
        inspect.model_dir(context), trust_remote_code=False, local_files_only=True
    ).max_position_embeddings
    return min(SPEED_PROMPT, positions // 2)


def protocols_of(context: Context) -> dict[str, EvaluationProtocol]:
    """Return, for each evaluation dataset, how it was measured and how much of it the result was also made from."""
    vocabulary = inspect.tokenizer_of(context).get_vocab()
    limit, known = context.assignment.recipe.evaluation.max_tokens, overlap.overlaps_of(context)
    found = {}
    for dataset, windows in calibrate.evaluations(context).items():
        protocol = protocol_of(context.assignment.texts[dataset], vocabulary, windows, max_tokens=limit)
        found[dataset] = EvaluationProtocol(id=protocol.id, overlap=known[dataset], **dataclasses.asdict(protocol))
    return found


def write_probe(context: Context, directory: Path, path: Path) -> None:
    """Store the logits of a checkpoint for a few tokens; `verify` compares them with those of a fresh process."""
    windows = next(iter(calibrate.evaluations(context).values()))
    ids = windows[:PROBE_SEQUENCES, :PROBE_LENGTH].contiguous()
    with torch.no_grad():
        logits = streamed_logits(StreamedModel.open(directory), ids)
    save_file({"ids": ids, "logits": logits.contiguous()}, path)
    context.bench.finish_part(path)


def streamed_logits(model: StreamedModel, ids: Tensor) -> Tensor:
    """Return the logits [sequences, length, vocabulary] of token ids [sequences, length].

    One block is in memory at a time.
    """
    (hidden,) = final_states(model, ids, batch=len(ids))
    return model.logits(hidden)


def metrics(context: Context) -> Comparison:
    """Return all stored metrics, including those of the formats that round."""
    found = Comparison.model_validate_json(context.bench.part(NAME, metrics_file(MAIN)).read_bytes())
    rounded = {
        form.name: Metrics.model_validate_json(context.bench.part(NAME, metrics_file(form.name)).read_bytes())
        for form in write.written(context)
        if form.name != MAIN and is_rounded(context, form)
    }
    return found.model_copy(update={"formats": rounded})


def probe(context: Context, form: Format) -> Path:
    """Return the probe of a format; a format that does not round has that of the main checkpoint."""
    return context.bench.part(NAME, probe_file(form.name if is_rounded(context, form) else MAIN))


STAGE = Stage(names.EVALUATE, run)

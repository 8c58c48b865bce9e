"""Measure the original and the result, on text that the calibration did not see.

The result is measured in its written form, so the numbers are those of the files that a client downloads. A model that
does not fit into memory is measured block by block, but neither timed nor asked to write.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from app.contract.job import Comparison, Metrics, Stage
from workers.compression.evaluation.fidelity import perplexity
from workers.compression.evaluation.size import stored_size
from workers.compression.evaluation.speed import greedy_sample, speed
from workers.compression.models.streamed import StreamedModel
from workers.compression.package.checkpoint import write_package
from workers.stages import calibrate, compress, compute, inspect, memory
from workers.stages.context import Context

DRAFT = "draft"
METRICS = "metrics.json"
PROBE = "probe.safetensors"
PROMPT = "The capital of France is"
PROBE_SEQUENCES, PROBE_LENGTH = 2, 32
SPEED_PROMPT, SPEED_NEW_TOKENS = 512, 32


@dataclass(frozen=True)
class Use:
    """What only a whole model shows: tokens per second, reading and writing, and what it writes."""

    prefill: float | None = None
    decode: float | None = None
    sample: str | None = None


def run(context: Context, directory: Path) -> None:
    draft = directory / DRAFT
    base_model = inspect.hub_id(context)
    context.progress(0.05, "writing the weights")
    write_package(inspect.model_dir(context), compress.FinishedParts(context), draft, base_model=base_model)
    context.progress(0.1, "measuring the original")
    before = measure(context, inspect.model_dir(context))
    context.progress(0.55, "measuring the result")
    after = measure(context, draft)
    (directory / METRICS).write_text(Comparison(before=before, after=after).model_dump_json(indent=1))
    write_probe(context, draft, directory / PROBE)


def measure(context: Context, directory: Path) -> Metrics:
    size = stored_size(directory)
    model = compute.open_model(context, directory)
    perplexities = {name: perplexity(model, ids).value for name, ids in calibrate.evaluations(context).items()}
    use = use_of(context, model.whole()) if memory.holds(context, model) else Use()
    return Metrics(
        parameters=size.parameters,
        bytes=size.bytes,
        perplexity=perplexities,
        prefill_tokens_per_second=use.prefill,
        decode_tokens_per_second=use.decode,
        sample=use.sample,
    )


def use_of(context: Context, whole: PreTrainedModel) -> Use:
    length = min(SPEED_PROMPT, whole.config.max_position_embeddings // 2)
    tokenizer = AutoTokenizer.from_pretrained(inspect.model_dir(context))
    pace = speed(whole, prompt=length, new_tokens=min(SPEED_NEW_TOKENS, length))
    return Use(pace.prefill, pace.decode, greedy_sample(whole, tokenizer, PROMPT).replace("\0", "\ufffd"))


def write_probe(context: Context, directory: Path, path: Path) -> None:
    """Record what the result computes for a few tokens, for the fresh process that opens it later."""
    windows = next(iter(calibrate.evaluations(context).values()))
    ids = windows[:PROBE_SEQUENCES, :PROBE_LENGTH].contiguous()
    with torch.no_grad():
        logits = streamed_logits(StreamedModel.open(directory), ids)
    save_file({"ids": ids, "logits": logits.contiguous()}, path)


def streamed_logits(model: StreamedModel, ids: Tensor) -> Tensor:
    """Token ids [sequences, length] to logits [sequences, length, vocabulary], one block in memory at a time."""
    hidden = model.hidden(ids)
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


def metrics(context: Context) -> Comparison:
    return Comparison.model_validate(json.loads((context.results[Stage.EVALUATE] / METRICS).read_text()))

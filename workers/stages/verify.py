"""Open the package as a client would: in a fresh process, offline, with stock transformers and nothing of ours."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from app.contract.job import Stage
from workers.compression.evaluation.size import stored_size
from workers.compression.formats.verification import Probe, verify_all
from workers.messages import DoneReport
from workers.stages import evaluate, gate, memory, package, quantise
from workers.stages.context import Context

FILE = "verified.json"
TIMEOUT_SECONDS = 1800.0
"""For opening small checkpoints, on a machine that does other things as well."""
BYTES_PER_SECOND = 10e6
"""For large ones as much longer as reading them at this pace takes: a tenth of a plain disk's, since weights that do
not fit into memory are read again for each token."""
DENSE_TOLERANCE = 0.05
"""How far a logit of the dense export may lie from the package's, as part of the largest: each product of factors is
rounded to the dtype of the weights. A wrong matrix is off by the size of the logits."""


def run(context: Context, directory: Path) -> None:
    context.progress(0.1, "opening the package in a fresh process")
    finished = package.package_dir(context)
    probes = [probe_of(finished, context.results[Stage.EVALUATE])]
    quantised = quantise.quantised_dir(context)
    if quantised is not None:
        probes.append(probe_of(finished / quantised.name, context.results[Stage.QUANTISE]))
    dense = package.dense_dir(context)
    if dense is not None:
        probes.append(dataclasses.replace(probes[0], directory=dense, tolerance=DENSE_TOLERANCE))
    weights = stored_size(finished if dense is None else dense).parameters * probes[0].logits.itemsize
    room = memory.for_opening(context, weights)
    found, *_ = verify_all(probes, timeout=timeout_of(probes), memory=room)
    (directory / FILE).write_text(json.dumps({"difference": found.difference, "parameters": found.parameters}))


def timeout_of(probes: Sequence[Probe]) -> float:
    """Seconds after which opening all of them has failed."""
    return TIMEOUT_SECONDS + sum(weight_bytes(probe.directory) for probe in probes) / BYTES_PER_SECOND


def weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def probe_of(directory: Path, result: Path) -> Probe:
    """What a checkpoint should compute, by the stage's result that was measured."""
    recorded = load_file(result / evaluate.PROBE)
    return Probe(directory, recorded["ids"], recorded["logits"])


def done(context: Context) -> DoneReport:
    """What the job has come to, once the package is verified."""
    metrics = evaluate.metrics(context)
    return DoneReport(
        package=package.package_dir(context),
        achieved_ratio=metrics.ratio,
        metrics=metrics,
        missed=gate.missed(context.assignment.recipe.evaluation.gate, metrics),
    )

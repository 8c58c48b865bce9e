"""Open the package as a client would: in a fresh process, offline, with stock transformers and nothing of ours."""

import json
from pathlib import Path

from safetensors.torch import load_file

from app.contract.job import Stage
from workers.compression.evaluation.size import stored_size
from workers.compression.package.verification import Probe, verify_all
from workers.messages import DoneReport
from workers.stages import evaluate, gate, memory, package, quantise
from workers.stages.context import Context

FILE = "verified.json"
TIMEOUT_SECONDS = 1800.0


def run(context: Context, directory: Path) -> None:
    context.progress(0.1, "opening the package in a fresh process")
    finished = package.package_dir(context)
    probes = [probe_of(finished, context.results[Stage.EVALUATE])]
    quantised = quantise.quantised_dir(context)
    if quantised is not None:
        probes.append(probe_of(finished / quantised.name, context.results[Stage.QUANTISE]))
    weights = stored_size(finished).parameters * probes[0].logits.itemsize
    room = memory.for_opening(context, weights)
    found, *_ = verify_all(probes, timeout=TIMEOUT_SECONDS, memory=room)
    (directory / FILE).write_text(json.dumps({"difference": found.difference, "parameters": found.parameters}))


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

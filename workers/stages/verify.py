"""Open the package as a client would: in a fresh process, offline, with each format's engine and nothing of ours."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from modelpress.spec.formats import MAIN, Format
from workers.compression.companions import sample_texts, tokenised
from workers.compression.formats import writer_of
from workers.compression.formats.verification import Probe, Verified
from workers.compression.formats.writer import Opener
from workers.messages import DoneReport
from workers.stages import evaluate, gate, inspect, memory, names, package, write
from workers.stages.context import Context
from workers.stages.stage import Stage

FILE = "verified.json"
TIMEOUT_SECONDS = 1800.0
"""For opening small checkpoints, on a machine that does other things as well."""
BYTES_PER_SECOND = 10e6
"""For large ones as much longer as reading them at this pace takes: a tenth of a plain disk's, since weights that do
not fit into memory are read again for each token."""


def run(context: Context, directory: Path) -> None:
    context.progress(0.1, "opening the package in a fresh process")
    tokenizer = inspect.tokenizer_of(context)
    texts = sample_texts(tokenizer)
    expected = tokenised(tokenizer, texts)
    sizes, found = write.sizes(context), dict[str, Verified]()
    for opener, forms in by_opener(write.written(context)).items():
        stored = [sizes[form.name] for form in forms]
        probes = [replace(probe_of(context, form), texts=texts, tokenised=expected) for form in forms]
        weights = max(size.parameters * probe.logits.itemsize for size, probe in zip(stored, probes, strict=True))
        room = memory.for_opening(context, weights)
        limit = timeout_of(size.bytes for size in stored)
        verified = context.meter.open_fresh(opener, probes, timeout=limit, memory=room)
        found |= {form.name: facts for form, facts in zip(forms, verified, strict=True)}
    main = found[MAIN]
    (directory / FILE).write_text(json.dumps({"difference": main.difference, "parameters": main.parameters}))


def by_opener(forms: Iterable[Format]) -> dict[Opener, list[Format]]:
    """Return the formats by what opens them: a fresh process opens several, since starting it takes the most time."""
    found: dict[Opener, list[Format]] = {}
    for form in forms:
        found.setdefault(writer_of(form.name).open_fresh, []).append(form)
    return found


def probe_of(context: Context, form: Format) -> Probe:
    """Return what the package's checkpoint in a format should compute, as recorded when it was measured."""
    recorded = load_file(evaluate.probe(context, form))
    directory = package.place_of(package.package_dir(context), form.name)
    return Probe(directory, recorded["ids"], recorded["logits"], form.tolerance)


def timeout_of(sizes: Iterable[int]) -> float:
    """Seconds after which opening checkpoints with so many bytes of weights has failed."""
    return TIMEOUT_SECONDS + sum(sizes) / BYTES_PER_SECOND


def done(context: Context) -> DoneReport:
    """Return the result of the job, once the package is verified."""
    metrics = evaluate.metrics(context)
    return DoneReport(
        package=package.package_dir(context),
        achieved_ratio=metrics.ratio,
        metrics=metrics,
        missed=gate.missed(context.assignment.recipe.evaluation.gate, metrics),
    )


STAGE = Stage(names.VERIFY, run)

"""Record everything besides the recipe that a result depends on: model, texts, library versions and machine."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from modelpress.contract.recipe import Recipe
from modelpress.contract.report import Environment, OriginalRecord, Reproducibility, TextRecord
from modelpress.spec.companions import companion_names
from modelpress.spec.files import file_sha256
from modelpress.spec.headers import INDEX_FILE, stored_tensors
from workers.stages import compute, distill, tasks
from workers.stages.context import Context

PACKAGES = ("modelpress", "torch", "transformers", "safetensors", "tokenizers", "numpy")


def reproducibility(context: Context) -> Reproducibility:
    """Return the record for this job."""
    assignment = context.assignment
    return Reproducibility(
        original=OriginalRecord(
            reference=assignment.recipe.model,
            revision=assignment.revision,
            sha256={path.name: file_sha256(path) for path in files_of(assignment.model_path)},
        ),
        texts={
            dataset: TextRecord(revision=assignment.text_revisions.get(dataset), sha256=file_sha256(path))
            for dataset, path in assignment.texts.items()
        },
        versions={"python": platform.python_version()} | {name: version(name) for name in packages(assignment.recipe)},
        environment=environment(context),
    )


def packages(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the packages whose versions are recorded."""
    return (*PACKAGES, tasks.LIBRARY) if recipe.evaluation.tasks else PACKAGES


def files_of(model: Path) -> list[Path]:
    """Return the files of a model that are read: config, weights, tokenizer and companions, sorted by name."""
    if model.is_file():
        return [model]
    weights = {tensor.file for tensor in stored_tensors(model).values()}
    stated = [path for path in (model / "config.json", model / INDEX_FILE) if path.exists()]
    return sorted({*stated, *weights, *(model / name for name in companion_names(model))}, key=lambda path: path.name)


def environment(context: Context) -> Environment:
    """Return the machine and the settings that affect rounding."""
    place = compute.device(context)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return Environment(
        device=name,
        dtype=str(compute.dtype(place)).removeprefix("torch."),
        threads=torch.get_num_threads(),
        processes=distill.processes(context),
        platform=platform.platform(),
    )

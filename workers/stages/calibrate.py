"""Turn the recipe's texts into token windows: one set to calibrate on, one for each evaluation."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from app.contract.job import Stage
from workers.stages import inspect
from workers.stages.context import Context
from workers.stages.failures import StageFailed

FILE = "tokens.safetensors"
CALIBRATION = "calibration"
EVALUATION = "evaluation:"


def run(context: Context, directory: Path) -> None:
    recipe = context.assignment.recipe
    tokenizer = AutoTokenizer.from_pretrained(inspect.model_dir(context))
    windows = {CALIBRATION: calibration_windows(context, tokenizer)}
    for index, dataset in enumerate(recipe.evaluation.datasets):
        context.progress(index / len(recipe.evaluation.datasets), f"reading {dataset}")
        tokens = tokenize(tokenizer, context.assignment.texts[dataset])
        count = min(len(tokens), recipe.evaluation.max_tokens)
        windows[EVALUATION + dataset] = cut(tokens[:count], recipe.evaluation.window, dataset, "evaluation.window")
    save_file(windows, directory / FILE)


def calibration_windows(context: Context, tokenizer: Any) -> Tensor:
    """At most the asked number of windows, drawn from the text without overlap; fewer where the text is short."""
    calibration = context.assignment.recipe.calibration
    tokens = tokenize(tokenizer, context.assignment.texts[calibration.dataset])
    windows = cut(tokens, calibration.length, calibration.dataset, "calibration.length")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(context.assignment.recipe.seed))
    return windows[order[: calibration.sequences].sort().values].contiguous()


def tokenize(tokenizer: Any, path: Path) -> Tensor:
    text = path.read_text(encoding="utf-8")
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def cut(tokens: Tensor, length: int, dataset: str, field: str) -> Tensor:
    """[tokens] → [windows, length], without overlap; the rest is left out."""
    count = len(tokens) // length
    if count == 0:
        raise StageFailed(
            "text_too_short", f"{dataset} has {len(tokens)} tokens, less than one window; lower {field} ({length})"
        )
    return tokens[: count * length].view(count, length)


def calibration(context: Context) -> Tensor:
    """[sequences, length] of int64."""
    return load_file(context.results[Stage.CALIBRATE] / FILE)[CALIBRATION]


def evaluations(context: Context) -> dict[str, Tensor]:
    """For each evaluation dataset [windows, window] of int64."""
    tokens = load_file(context.results[Stage.CALIBRATE] / FILE)
    return {name.removeprefix(EVALUATION): ids for name, ids in tokens.items() if name.startswith(EVALUATION)}

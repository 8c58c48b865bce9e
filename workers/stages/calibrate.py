"""Turn the recipe's texts into windows of tokens: some to calibrate on, some to distil on, some for each evaluation."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from app.contract.codes import FailureCode
from app.contract.recipe import TEACHER, Distillation, Recipe
from app.sources.documents import Document, read_documents
from workers.messages import AttemptFailed
from workers.stages import inspect, names, tasks, teacher_text
from workers.stages.context import Context
from workers.stages.overlap import record_overlaps
from workers.stages.stage import Stage

FILE = "tokens.safetensors"
CALIBRATION = "calibration"
DISTILLATION = "distillation"
EVALUATION = "evaluation:"
BETWEEN = "\n\n"
WRITTEN_LIKE_THE_REST = 131_072
"""The original writes this many tokens in the time that all stages of a plain job take together."""

PIECE = 2**18
"""Characters that are tokenised at a time: the tokenizer takes some 200 bytes for each token of them."""


def run(context: Context, directory: Path) -> None:
    recipe = context.assignment.recipe
    tasks.require_data(context)
    tokenizer = AutoTokenizer.from_pretrained(inspect.model_dir(context))
    windows = {CALIBRATION: calibration_windows(context, tokenizer)}
    if recipe.distillation is not None:
        windows[DISTILLATION] = distillation_windows(context, tokenizer, recipe.distillation)
    for index, dataset in enumerate(recipe.evaluation.datasets):
        context.progress(index / len(recipe.evaluation.datasets), f"reading {dataset}")
        windows[EVALUATION + dataset] = evaluation_windows(context, tokenizer, dataset)
    save_file(windows, directory / FILE)
    judged = {name.removeprefix(EVALUATION): ids for name, ids in windows.items() if name.startswith(EVALUATION)}
    record_overlaps(directory, judged, [ids for name, ids in windows.items() if not name.startswith(EVALUATION)])


def calibration_windows(context: Context, tokenizer: Any) -> Tensor:
    """Of each dataset the windows that the recipe asks for; fewer where a text is short."""
    calibration, seed = context.assignment.recipe.calibration, context.assignment.recipe.seed
    drawn = []
    for dataset, count in calibration.divided(calibration.sequences).items():
        windows = windows_of(context, tokenizer, dataset, calibration.length, "calibration.length")
        drawn.append(windows[shuffled(len(windows), seed)[:count].sort().values])
    return torch.cat(drawn)


def distillation_windows(context: Context, tokenizer: Any, distillation: Distillation) -> Tensor:
    """Of each dataset its share of the windows, and no more than the tokens ask for; those of a text that is shorter
    than its share come repeatedly, unless every text is shorter."""
    needed, seed = distillation.divided(distillation.windows), context.assignment.recipe.seed
    found = {}
    for dataset, count in needed.items():
        context.progress(0.0, f"reading {dataset}")
        windows = windows_of(context, tokenizer, dataset, distillation.length, "distillation.length")
        found[dataset] = windows[shuffled(len(windows), seed)[:count]]
    covered = max(Fraction(len(windows), needed[dataset]) for dataset, windows in found.items())
    return torch.cat(
        [
            windows[torch.arange(math.ceil(covered * needed[dataset])) % len(windows)]
            for dataset, windows in found.items()
        ]
    )


def evaluation_windows(context: Context, tokenizer: Any, dataset: str) -> Tensor:
    """The beginning of the text, its documents separated by blank lines."""
    evaluation = context.assignment.recipe.evaluation
    texts = separated(plain_text(tokenizer, document) for document in documents_of(context, dataset))
    tokens = first_tokens(tokenizer, texts, evaluation.max_tokens)
    return cut(tokens, evaluation.window, dataset, "evaluation.window")


def separated(texts: Iterable[str]) -> Iterator[str]:
    """The same, a blank line before each but the first."""
    for number, text in enumerate(texts):
        yield BETWEEN + text if number else text


def first_tokens(tokenizer: Any, texts: Iterable[str], most: int) -> Tensor:
    """At most so many tokens of the texts; nothing behind them is read."""
    found = [torch.zeros(0, dtype=torch.int64)]
    for text in texts:
        for tokens in tokenize(tokenizer, text):
            found.append(tokens[:most])
            most -= len(found[-1])
            if most == 0:
                return torch.cat(found)
    return torch.cat(found)


def windows_of(context: Context, tokenizer: Any, dataset: str, length: int, field: str) -> Tensor:
    """[windows, length] of a dataset, in its order; `field` of the recipe is the one that asks for the length."""
    if dataset == TEACHER:
        return cut(teacher_text.written(context, tokenizer), length, dataset, field)
    return packed(token_documents(context, tokenizer, dataset), tokenizer.eos_token_id, length, dataset, field)


def token_documents(context: Context, tokenizer: Any, dataset: str) -> Iterator[Tensor]:
    """The token ids of each document of a dataset."""
    yield from text_documents(tokenizer, documents_of(context, dataset))


def text_documents(tokenizer: Any, documents: Iterable[Document]) -> Iterator[Tensor]:
    for document in documents:
        yield torch.cat([*tokenize(tokenizer, plain_text(tokenizer, document))])


def documents_of(context: Context, dataset: str) -> Iterator[Document]:
    return read_documents(context.assignment.texts[dataset])


def plain_text(tokenizer: Any, document: Document) -> str:
    """A conversation as the model's chat template writes it; without a template its contents follow each other."""
    if isinstance(document, str):
        return document
    if tokenizer.chat_template is None:
        return BETWEEN.join(message["content"] for message in document)
    try:
        return str(tokenizer.apply_chat_template(document, tokenize=False))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in document)
        raise AttemptFailed(
            FailureCode.CONVERSATION_REFUSED,
            f"the model's chat template refuses a conversation of {roles[:200]}: {error}",
        ) from error


def tokenize(tokenizer: Any, text: str) -> Iterator[Tensor]:
    """The token ids of a text, piece by piece."""
    for piece in pieces(text):
        yield torch.tensor(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most PIECE characters, cut behind the end of a line, or else of a word."""
    start = 0
    while len(text) - start > PIECE:
        cuts = (text.rfind(mark, start, start + PIECE) + 1 for mark in "\n ")
        end = next((cut for cut in cuts if cut > 0), start + PIECE)
        yield text[start:end]
        start = end
    yield text[start:]


def packed(documents: Iterable[Tensor], end: int | None, length: int, dataset: str, field: str) -> Tensor:
    """Documents of token ids, one behind the other with the token `end` between them, as windows [windows, length]."""
    separator = torch.tensor([] if end is None else [end], dtype=torch.int64)
    pieces = [piece for document in documents for piece in (document, separator)]
    return cut(torch.cat([separator[:0], *pieces[:-1]]), length, dataset, field)


def cut(tokens: Tensor, length: int, dataset: str, field: str) -> Tensor:
    """[tokens] → [windows, length], without overlap; the rest is left out."""
    count = len(tokens) // length
    if count == 0:
        raise AttemptFailed(
            FailureCode.TEXT_TOO_SHORT,
            f"{dataset} has {len(tokens)} tokens, less than one window; lower {field} ({length})",
        )
    return tokens[: count * length].view(count, length)


def shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def calibration(context: Context) -> Tensor:
    """[sequences, length] of int64."""
    return load_file(context.results[names.CALIBRATE] / FILE)[CALIBRATION]


def distillation(context: Context) -> Tensor:
    """[windows, length] of int64."""
    return load_file(context.results[names.CALIBRATE] / FILE)[DISTILLATION]


def evaluations(context: Context) -> dict[str, Tensor]:
    """For each evaluation dataset [windows, window] of int64."""
    tokens = load_file(context.results[names.CALIBRATE] / FILE)
    return {name.removeprefix(EVALUATION): ids for name, ids in tokens.items() if name.startswith(EVALUATION)}


def weight(recipe: Recipe, turn: int) -> float:
    """Return how long this stage takes: mostly, the text that the original writes."""
    written = 0 if recipe.teacher_text is None else math.prod(recipe.teacher_text)
    return 0.01 + written / WRITTEN_LIKE_THE_REST


STAGE = Stage(names.CALIBRATE, run, weight, once=True)

"""Turn the recipe's texts into windows of tokens: some to calibrate on, some to distil on, some for each evaluation."""

import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.sources.documents import Document, read_documents
from modelpress.contract.codes import FailureCode
from modelpress.contract.distillation import Distillation
from modelpress.contract.fields import TEACHER
from workers.compression import chat_template
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
MOST_UNKNOWN = 0.5
"""Part of a text that may be unknown to the tokenizer."""
LETTER = "a"
PANIC = "PanicException"
PIECE = 2**18
"""Characters that are tokenised at a time: the tokenizer takes some 200 bytes for each token of them."""


def run(context: Context, directory: Path) -> None:
    recipe = context.assignment.recipe
    tasks.require_data(context)
    tokenizer = inspect.tokenizer_of(context)
    windows = {CALIBRATION: calibration_windows(context, tokenizer)}
    if recipe.distillation is not None:
        windows[DISTILLATION] = distillation_windows(context, tokenizer, recipe.distillation)
    for index, dataset in enumerate(recipe.evaluation.datasets):
        context.progress(index / len(recipe.evaluation.datasets), f"reading {dataset}")
        windows[EVALUATION + dataset] = evaluation_windows(context, tokenizer, dataset)
    require_usable(windows, tokenizer, inspect.model_inventory(context).vocab_size)
    save_file(windows, directory / FILE)
    judged = {name.removeprefix(EVALUATION): ids for name, ids in windows.items() if name.startswith(EVALUATION)}
    record_overlaps(directory, judged, [ids for name, ids in windows.items() if not name.startswith(EVALUATION)])


def require_usable(windows: Mapping[str, Tensor], tokenizer: Any, rows: int) -> None:
    """Raise AttemptFailed where a text holds a token that the embedding has no row for, or hardly one that is known.

    `windows`: for each text the ids [windows, length]. `rows`: those of the embedding.
    """
    unknown = tokenizer.unk_token_id
    separate = unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, ids in windows.items():
        if (largest := int(ids.max())) >= rows:
            raise AttemptFailed(
                FailureCode.INVALID_MODEL,
                f"the text for {name.removesuffix(':')} holds the token {tokenizer.convert_ids_to_tokens(largest)!r} "
                f"with the number {largest}, but the embedding has {rows} rows; resize the model to its tokenizer",
            )
        share = float((ids == unknown).double().mean()) if separate else 0.0
        if share > MOST_UNKNOWN:
            raise AttemptFailed(
                FailureCode.NO_TOKENIZER,
                f"the model's tokenizer does not know {share:.0%} of the text for {name.removesuffix(':')}; "
                "its vocabulary is missing or of another script",
            )


def beginning_of(tokenizer: Any) -> int | None:
    """Return the id of the token that the tokenizer puts before every text; None where it puts none."""
    begin: int | None = tokenizer.bos_token_id
    return begin if begin is not None and tokenizer(LETTER)["input_ids"][:1] == [begin] else None


def calibration_windows(context: Context, tokenizer: Any) -> Tensor:
    """Return the windows that the recipe asks for of each dataset; fewer where a text is short."""
    calibration, seed = context.assignment.recipe.calibration, context.assignment.recipe.seed
    drawn = []
    for dataset, count in calibration.divided(calibration.sequences).items():
        windows = windows_of(context, tokenizer, dataset, calibration.length, "calibration.length")
        drawn.append(windows[shuffled(len(windows), seed)[:count].sort().values])
    return torch.cat(drawn)


def distillation_windows(context: Context, tokenizer: Any, distillation: Distillation) -> Tensor:
    """Return of each dataset its share of the windows, and no more than the tokens ask for.

    The windows of a text that is shorter than its share are repeated, unless every text is shorter.
    """
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
    """Return windows of the beginning of the text, its documents separated by blank lines."""
    evaluation, begin = context.assignment.recipe.evaluation, beginning_of(tokenizer)
    texts = separated(plain_text(tokenizer, document) for document in documents_of(context, dataset))
    most = evaluation.max_tokens
    if begin is not None:
        most = most // evaluation.window * (evaluation.window - 1)  # each window spends one on its beginning
    tokens = first_tokens(tokenizer, texts, most)
    return cut(tokens, evaluation.window, dataset, "evaluation.window", begin)


def separated(texts: Iterable[str]) -> Iterator[str]:
    """Yield the documents, with a blank line before each but the first."""
    for number, text in enumerate(texts):
        yield BETWEEN + text if number else text


def first_tokens(tokenizer: Any, texts: Iterable[str], most: int) -> Tensor:
    """Return at most so many tokens of the texts; nothing behind them is read."""
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
    begin = beginning_of(tokenizer)
    if dataset == TEACHER:
        return cut(teacher_text.written(context, tokenizer), length, dataset, field, begin)
    tokens = packed(token_documents(context, tokenizer, dataset), tokenizer.eos_token_id)
    return cut(tokens, length, dataset, field, begin)


def token_documents(context: Context, tokenizer: Any, dataset: str) -> Iterator[Tensor]:
    """Yield the token ids of each document of a dataset."""
    yield from text_documents(tokenizer, documents_of(context, dataset))


def text_documents(tokenizer: Any, documents: Iterable[Document]) -> Iterator[Tensor]:
    for document in documents:
        yield torch.cat([*tokenize(tokenizer, plain_text(tokenizer, document))])


def documents_of(context: Context, dataset: str) -> Iterator[Document]:
    return read_documents(context.assignment.texts[dataset])


def plain_text(tokenizer: Any, document: Document) -> str:
    """Return a conversation as the model's chat template writes it, or else its contents one after another."""
    if isinstance(document, str):
        return document
    if tokenizer.chat_template is None:
        return BETWEEN.join(message["content"] for message in document)
    try:
        return chat_template.written(tokenizer, document)
    except chat_template.TemplateFailed as error:
        raise AttemptFailed(FailureCode.CONVERSATION_REFUSED, f"the model's chat template {error}") from error


def tokenize(tokenizer: Any, text: str) -> Iterator[Tensor]:
    """Yield the token ids of a text, piece by piece."""
    for piece in pieces(text):
        try:
            ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            if type(error).__name__ != PANIC:
                raise
            raise AttemptFailed(
                FailureCode.NO_TOKENIZER, f"the model's tokenizer fails on a text: {str(error)[:200]}"
            ) from error
        yield torch.tensor(ids, dtype=torch.int64)


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most PIECE characters, cut behind the end of a line, or else of a word."""
    start = 0
    while len(text) - start > PIECE:
        cuts = (text.rfind(mark, start, start + PIECE) + 1 for mark in "\n ")
        end = next((cut for cut in cuts if cut > 0), start + PIECE)
        yield text[start:end]
        start = end
    yield text[start:]


def packed(documents: Iterable[Tensor], end: int | None) -> Tensor:
    """Documents of token ids as one row [tokens], the token `end` between them."""
    separator = torch.tensor([] if end is None else [end], dtype=torch.int64)
    pieces = [piece for document in documents for piece in (document, separator)]
    return torch.cat([separator[:0], *pieces[:-1]])


def cut(tokens: Tensor, length: int, dataset: str, field: str, begin: int | None = None) -> Tensor:
    """[tokens] → [windows, length], without overlap; the rest is left out. Each window begins with the token `begin`,
    where there is one: models that always saw it compute something else without it."""
    if begin is not None and tokens[:1].tolist() == [begin]:
        tokens = tokens[1:]
    taken = length if begin is None else length - 1
    count = len(tokens) // taken
    if count == 0:
        raise AttemptFailed(
            FailureCode.TEXT_TOO_SHORT,
            f"{dataset} has {len(tokens)} tokens, less than one window; lower {field} ({length})",
        )
    windows = tokens[: count * taken].view(count, taken)
    return windows if begin is None else torch.nn.functional.pad(windows, (1, 0), value=begin)


def shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def calibration(context: Context) -> Tensor:
    """[sequences, length] of int64."""
    return load_file(context.results[names.CALIBRATE] / FILE)[CALIBRATION]


def distillation(context: Context) -> Tensor:
    """[windows, length] of int64."""
    return load_file(context.results[names.CALIBRATE] / FILE)[DISTILLATION]


def evaluations(context: Context) -> dict[str, Tensor]:
    """Return the token ids [windows, window] of each evaluation dataset, as int64."""
    tokens = load_file(context.results[names.CALIBRATE] / FILE)
    return {name.removeprefix(EVALUATION): ids for name, ids in tokens.items() if name.startswith(EVALUATION)}


STAGE = Stage(names.CALIBRATE, run, once=True)

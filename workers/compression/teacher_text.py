"""Text that nobody has to bring: token sequences written by the model that is to be compressed.

    for tokens in sample(model, tokenizer, 32, 1024, seed=0):    # one batch of rows after another, [rows, 1024]
        ...

Every sequence is documents one behind the other, without padding: where one ends, the next begins in the same row. A
document is opened by tokens that are given (a word, the mark of a document's beginning, or the frame of a question and
of its answer) and written on by the model, each row at a temperature of its own.

Promise: the same model, tokenizer, arguments, machine and number of threads give the same tokens, and a batch does not
depend on those before it. The whole model must be in memory, beside it the keys and values of `Sampling.batch` rows.

Sources: text from the model itself as the data of distillation and calibration: LLM-QAT, arXiv 2305.17888; questions
that a chat model asks itself when shown the frame alone: Magpie, arXiv 2406.08464; min-p: arXiv 2407.01082.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.compression.drawing import drawn_of_each
from workers.compression.models.decoding import decoding

PLACE_OF_QUESTION = "PLACEOFQUESTION"
WORD_MARKS = "Ġ▁"
"""What a token of a word that follows a space begins with, in byte-level and in SentencePiece vocabularies."""
DOCUMENT_MARKS = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>"})
"""Names of the token between the documents of a pre-training, which a chat model's tokenizer often keeps."""

Opening = tuple[int, ...]
Document = tuple[Opening, ...]
"""What is given of a document: its first tokens, and the tokens after each place where the model came to an end."""


@dataclass(frozen=True)
class Sampling:
    """How the text is drawn.

    `batch` rows are written at once; their temperatures lie evenly between `coolest` and `hottest` over all sequences.
    A token less probable than `min_p` times the most probable one is never drawn. The first token after the mark of a
    document's beginning is drawn at `opening_temperature` from all tokens instead, since it decides on the document.
    """

    batch: int = 64
    coolest: float = 0.9
    hottest: float = 1.2
    min_p: float = 0.02
    opening_temperature: float = 1.5

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.coolest <= self.hottest or self.opening_temperature <= 0:
            raise ValueError(f"not a way to sample: {self}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p lies from 0 to below 1, not at {self.min_p}")


@dataclass(frozen=True)
class Openings:
    """How documents of one model begin and end.

    Attributes:
        prefix: the mark of a beginning, where the tokenizer puts it before every text; else nothing.
        words: tokens that begin a word with a capital.
        mark: the token that stood before the documents of the pre-training, where the tokenizer still has it. What a
            chat model writes behind it is as mixed as what it once read, code included.
        question: the frame of a user's message up to the message, where there is a chat template.
        answer: what stands between the end of that message and the reply.
        ends: tokens that end a document or a message.
    """

    prefix: Opening
    words: Tensor
    mark: int | None
    question: Opening
    answer: Opening
    ends: frozenset[int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Openings":
        beginning = tokenizer.bos_token_id
        prefix = (beginning,) if beginning in tokenizer("")["input_ids"][:1] else ()
        question, answer = chat_frame(tokenizer)
        mark = tokenizer.eos_token_id if beginning is None else beginning
        if question and not prefix:  # then these are the marks of a chat model's turns, and open no document
            mark = document_mark(model, tokenizer)
        return cls(prefix, word_tokens(model, tokenizer), mark, question, answer, end_tokens(model, tokenizer))

    def draw(self, generator: torch.Generator) -> Document:
        """A document of one of two kinds, equally often: one behind the mark, or a question with its answer.

        A model that has no mark or no questions writes documents behind a word instead.
        """
        kinds: list[Document] = []
        if self.mark is not None:
            kinds.append(((self.mark,),))
        if self.question:
            kinds.append((self.question, self.answer))
        if len(kinds) < 2:
            kinds.append(((*self.prefix, int(self.words[drawn_number(len(self.words), generator)])),))
        return kinds[drawn_number(len(kinds), generator)]


class Row:
    """One sequence while it is written: what is given next, and what comes at the next end."""

    def __init__(self, openings: Openings, generator: torch.Generator) -> None:
        self.openings = openings
        self.generator = generator
        self.given: list[int] = []
        self.later: list[Opening] = []
        self.at_beginning = False
        self.begin(last=None)

    def begin(self, last: int | None) -> None:
        """Open the next part of the document, or the next one; a token that stands there already is not doubled."""
        if not self.later:
            self.later = list(self.openings.draw(self.generator))
        opening = self.later.pop(0)
        self.at_beginning = opening == (self.openings.mark,)
        self.given = list(opening[1:] if opening[0] == last else opening)

    def take(self, written: int) -> int:
        """The next token of this row: a given one, or else the one that the model has written."""
        if self.given:
            return self.given.pop(0)
        self.at_beginning = False
        if written in self.openings.ends:
            self.begin(last=written)
        return written


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    sampling: Sampling | None = None,
    *,
    seed: int,
    start: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Write `count` sequences of `length` tokens; yields them in batches of `Sampling.batch`, each [rows, length].

    The batches before number `start` are skipped: one that was interrupted goes on with those that it has not got.
    `progress` is called with the tokens that the running batch has written so far, after each step.
    The model computes where it is and in its own dtype; its mode and its attention are as before between batches.
    """
    sampling = Sampling() if sampling is None else sampling
    openings = Openings.of(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(sampling.coolest, sampling.hottest, count)
    batches = torch.split(spread[torch.randperm(count, generator=generator)], sampling.batch)
    seeds = torch.randint(2**62, (len(batches),), generator=generator).tolist()
    for number in range(start, len(batches)):
        own = torch.Generator().manual_seed(seeds[number])
        rows = [Row(openings, own) for _ in batches[number]]
        yield _written(model, rows, length, batches[number], sampling, own, progress)


@torch.inference_mode()
def _written(
    model: PreTrainedModel,
    rows: list[Row],
    length: int,
    temperatures: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """All rows, one token each at a time: [rows, length] of int64 on the CPU."""
    tokens = torch.tensor([row.take(-1) for row in rows])
    taken = [tokens]
    with decoding(model) as decode:
        while len(taken) < length:
            written = next_tokens(decode(tokens).cpu(), rows, temperatures, sampling, generator)
            tokens = torch.tensor([row.take(token) for row, token in zip(rows, written.tolist(), strict=True)])
            taken.append(tokens)
            if progress is not None:
                progress(len(taken) * len(rows))
    return torch.stack(taken, dim=1)


def next_tokens(
    logits: Tensor, rows: list[Row], temperatures: Tensor, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """One token for each row: logits [rows, V] → [rows]."""
    beginning = torch.tensor([row.at_beginning and not row.given for row in rows])
    temperature = torch.where(beginning, sampling.opening_temperature, temperatures)
    least = torch.where(beginning, 0.0, sampling.min_p)
    best = logits.amax(-1).float()
    likely = logits >= (best + temperature * least.log())[:, None]  # few tokens of a vocabulary, and these weigh alone
    row, token = likely.nonzero(as_tuple=True)
    weights = ((logits[row, token].float() - best[row]) / temperature[row]).exp()
    return token[drawn_of_each(weights, torch.bincount(row, minlength=len(rows)), generator)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that is known to end a document or a message."""
    settings = (
        model.config.eos_token_id,
        getattr(model.generation_config, "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    return frozenset(
        token
        for setting in settings
        if setting is not None
        for token in (setting if isinstance(setting, list) else [setting])
    )


def document_mark(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that separated documents in the pre-training, by its name, where the model still has a row for it."""
    vocabulary = tokenizer.get_added_vocab()
    known = [vocabulary[name] for name in sorted(DOCUMENT_MARKS & vocabulary.keys())]
    return next((token for token in known if token < model.config.vocab_size), None)


def word_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Tokens that begin a word with a capital, as documents do, [words]; without any, all but the special ones."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(model.config.vocab_size, len(tokenizer))) if token not in special]
    pieces = tokenizer.convert_ids_to_tokens(ordinary)
    words = [token for token, piece in zip(ordinary, pieces, strict=True) if is_capitalised(piece.lstrip(WORD_MARKS))]
    return torch.tensor(words or ordinary)


def is_capitalised(piece: str) -> bool:
    return len(piece) > 1 and piece.isalpha() and piece.istitle()


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Opening, Opening]:
    """The tokens before a user's message, and those from its end to the reply; empty without a usable chat template."""
    if not tokenizer.chat_template:
        return (), ()
    message = {"role": "user", "content": PLACE_OF_QUESTION}
    try:
        rendered: Any = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return (), ()
    before, found, after = str(rendered).partition(PLACE_OF_QUESTION)
    if not (found and before and after):
        return (), ()
    question, answer = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after))
    return question, answer


def drawn_number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))

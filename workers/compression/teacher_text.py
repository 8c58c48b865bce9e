"""Training text without a dataset: token sequences sampled from the model that is to be compressed.

    for tokens in sample(model, tokenizer, 32, 1024, seed=0):    # one batch of rows after another, [rows, 1024]
        ...

Every sequence consists of documents without padding: where one ends, the next begins in the same row. A document opens
with given tokens (a word, the mark of a document's beginning, or the chat template around a question and its answer)
and the model continues it, each row at a temperature of its own.

Promise: the same model, tokenizer, arguments, machine and number of threads give the same tokens, and a batch does not
depend on those before it. The whole model must be in memory, plus the keys and values of `Sampling.batch` rows.

Sources: text from the model itself for distillation and calibration: LLM-QAT, arXiv 2305.17888; questions that a chat
model asks itself when given only the chat template: Magpie, arXiv 2406.08464; min-p: arXiv 2407.01082.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.compression import chat_template
from workers.compression.drawing import draw_from_groups
from workers.compression.models.decoding import decoding

PLACE_OF_QUESTION = "PLACEOFQUESTION"
"""Placeholder of the user's message while the chat template is rendered."""
WORD_MARKS = "Ġ▁"
"""First characters of a token that starts a word after a space, in byte-level and in SentencePiece vocabularies."""
DOCUMENT_MARKS = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>"})
"""Names of the token between documents in pre-training, which a chat model's tokenizer often keeps."""

Opening = tuple[int, ...]
Document = tuple[Opening, ...]
"""The given tokens of a document: its opening, then the tokens after each place where the model ends its text."""


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling.

    `batch` rows are written at once. Their temperatures are spaced evenly between `coolest` and `hottest` over all
    sequences. A token less probable than `min_p` times the most probable one is never drawn. The first token after the
    mark of a document's beginning decides what the document is about, so it is drawn at `opening_temperature` from all
    tokens.
    """

    batch: int = 64
    coolest: float = 0.9
    hottest: float = 1.2
    min_p: float = 0.02
    opening_temperature: float = 1.5

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.coolest <= self.hottest or self.opening_temperature <= 0:
            raise ValueError(
                f"batch must be at least 1, opening_temperature above 0, and 0 < coolest <= hottest; got {self}"
            )
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be at least 0 and below 1; got {self.min_p}")


@dataclass(frozen=True)
class Openings:
    """Token sequences that begin and end a document for one model.

    Attributes:
        prefix: the beginning-of-text token where the tokenizer puts one before every text; else empty.
        words: tokens that begin a capitalised word, [words].
        mark: the token that stood before documents in pre-training, where the tokenizer still has it. A chat model
            continues it with text as mixed as its pre-training data, code included.
        question: the chat template up to the user's message; empty without a usable template.
        answer: the chat template between the end of that message and the reply.
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
        """Return the openings that suit the model and its tokenizer."""
        beginning = tokenizer.bos_token_id
        prefix = (beginning,) if beginning in tokenizer("")["input_ids"][:1] else ()
        question, answer = chat_frame(tokenizer)
        mark = tokenizer.eos_token_id if beginning is None else beginning
        if question and not prefix:  # these tokens then mark the turns of a chat and open no document
            mark = document_mark(model, tokenizer)
        return cls(prefix, word_tokens(model, tokenizer), mark, question, answer, end_tokens(model, tokenizer))

    def draw(self, generator: torch.Generator) -> Document:
        """Draw a document of one of two kinds, equally often: text after the mark, or a question with its answer.

        A model that lacks the mark or a chat template writes documents that open with a word instead.
        """
        kinds: list[Document] = []
        if self.mark is not None:
            kinds.append(((self.mark,),))
        if self.question:
            kinds.append((self.question, self.answer))
        if len(kinds) < 2:
            kinds.append(((*self.prefix, int(self.words[draw_number(len(self.words), generator)])),))
        return kinds[draw_number(len(kinds), generator)]


class Row:
    """One sequence while it is written: the tokens to give next, and the openings that follow at the next ends."""

    def __init__(self, openings: Openings, generator: torch.Generator) -> None:
        self.openings = openings
        self.generator = generator
        self.given: list[int] = []
        self.later: list[Opening] = []
        self.at_beginning = False
        self.begin(last=None)

    def begin(self, last: int | None) -> None:
        """Open the document's next part or the next document; an opening that begins with `last` does not repeat it."""
        if not self.later:
            self.later = list(self.openings.draw(self.generator))
        opening = self.later.pop(0)
        self.at_beginning = opening == (self.openings.mark,)
        self.given = list(opening[1:] if opening[0] == last else opening)

    def take(self, written: int) -> int:
        """Return the next token of this row: a given one, or else `written`, the token that the model has drawn."""
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
    """Yield `count` sequences of `length` tokens in batches of `Sampling.batch`, each int64 [rows, length] on the CPU.

    Between batches the model's mode and attention are as before; it computes on its own device and in its own dtype.

    Args:
        model: the model that writes.
        tokenizer: its tokenizer.
        count: number of sequences.
        length: tokens per sequence.
        sampling: settings; the defaults of `Sampling` if None.
        seed: seed of all random choices.
        start: number of the first batch to yield; an interrupted run continues with the batches that it lacks.
        progress: called after each step with the number of tokens written so far in the running batch.
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
        yield _write_batch(model, rows, length, batches[number], sampling, own, progress)


@torch.inference_mode()
def _write_batch(
    model: PreTrainedModel,
    rows: list[Row],
    length: int,
    temperatures: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    progress: Callable[[int], None] | None,
) -> Tensor:
    """Write all rows, one token each per step; return int64 [rows, length] on the CPU."""
    tokens = torch.tensor([row.take(-1) for row in rows])
    taken = [tokens]
    with decoding(model) as decode:
        while len(taken) < length:
            written = next_tokens(decode(tokens), rows, temperatures, sampling, generator)
            tokens = torch.tensor([row.take(token) for row, token in zip(rows, written.tolist(), strict=True)])
            taken.append(tokens)
            if progress is not None:
                progress(len(taken) * len(rows))
    return torch.stack(taken, dim=1)


def next_tokens(
    logits: Tensor, rows: list[Row], temperatures: Tensor, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Draw one token for each row, [rows] on the CPU, from logits [rows, V] on any device."""
    beginning = torch.tensor([row.at_beginning and not row.given for row in rows])
    temperature = torch.where(beginning, sampling.opening_temperature, temperatures)
    least = torch.where(beginning, 0.0, sampling.min_p)
    best = logits.amax(-1).float()
    depth = (temperature * least.log()).to(best.device)
    likely = logits >= (best + depth)[:, None]  # few tokens remain, so only these leave the device and get weights
    row, token = likely.nonzero(as_tuple=True)
    heights = (logits[row, token].float() - best[row]).cpu()
    row, token = row.cpu(), token.cpu()
    weights = (heights / temperature[row]).exp()
    return token[draw_from_groups(weights, torch.bincount(row, minlength=len(rows)), generator)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every token that is known to end a document or a message."""
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
    """Return the token that separated documents in pre-training, found by name, or None where the model has none."""
    vocabulary = tokenizer.get_added_vocab()
    known = [vocabulary[name] for name in sorted(DOCUMENT_MARKS & vocabulary.keys())]
    return next((token for token in known if token < model.config.vocab_size), None)


def word_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the tokens that begin a capitalised word, as documents do, [words]; without any, all ordinary tokens."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(model.config.vocab_size, len(tokenizer))) if token not in special]
    pieces = tokenizer.convert_ids_to_tokens(ordinary)
    words = [token for token, piece in zip(ordinary, pieces, strict=True) if is_capitalised(piece.lstrip(WORD_MARKS))]
    return torch.tensor(words or ordinary)


def is_capitalised(piece: str) -> bool:
    """Return whether a piece is a capitalised word of at least two letters."""
    return len(piece) > 1 and piece.isalpha() and piece.istitle()


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Opening, Opening]:
    """Return the tokens before a user's message, and those from its end to the reply; empty without a usable chat
    template."""
    if not tokenizer.chat_template:
        return (), ()
    message = {"role": "user", "content": PLACE_OF_QUESTION}
    try:
        rendered = chat_template.written(tokenizer, [message], add_generation_prompt=True)
    except chat_template.TemplateFailed:
        return (), ()
    before, found, after = rendered.partition(PLACE_OF_QUESTION)
    if not (found and before and after):
        return (), ()
    question, answer = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after))
    return question, answer


def draw_number(below: int, generator: torch.Generator) -> int:
    """Return a random number from 0 up to, not including, `below`."""
    return int(torch.randint(below, (), generator=generator))

"""Text that a model writes for its own compression."""

import itertools
from collections import Counter

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tests.support.text_models import byte_tokenizer, write_tiny_model
from workers.compression import chat_template, teacher_text
from workers.compression.teacher_text import Openings, Row, Sampling, sample

CHAT = (
    "{% for message in messages %}{{ '<|user|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)
END, WORD = 0, 50
QUESTION = (7, 8)

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    directory = write_tiny_model(tmp_path_factory.mktemp("teacher"))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory).eval()
    return model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, **options: object) -> torch.Tensor:
    return torch.cat(list(sample(model, tokenizer, count, 24, **({"seed": 0} | options))))


def openings_of(words: list[int], mark: int | None = None, chat: bool = False) -> Openings:
    question, answer = (QUESTION, (9, 10)) if chat else ((), ())
    return Openings((), torch.tensor(words), mark, question, answer, frozenset({END, 9}))


def test_batches_hold_the_asked_number_of_sequences(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    batches = list(sample(teacher, tokenizer, 5, 24, Sampling(batch=2), seed=0))
    assert [tuple(batch.shape) for batch in batches] == [(2, 24), (2, 24), (1, 24)]
    assert all(batch.dtype == torch.int64 for batch in batches)


def test_a_seed_gives_the_same_text_and_another_seed_other_text(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = written(teacher, tokenizer, 3)
    assert torch.equal(written(teacher, tokenizer, 3), first)
    assert not torch.equal(written(teacher, tokenizer, 3, seed=1), first)


def test_an_interrupted_run_goes_on_with_the_same_text(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampling = Sampling(batch=2)
    whole = list(sample(teacher, tokenizer, 5, 24, sampling, seed=0))
    rest = list(sample(teacher, tokenizer, 5, 24, sampling, seed=0, start=1))
    assert all(map(torch.equal, whole[1:], rest))
    assert len(rest) == 2


def test_each_sequence_is_another_one(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(written(teacher, tokenizer, 8, sampling=Sampling(batch=4)).unique(dim=0)) == 8


def test_progress_counts_the_tokens_of_a_batch(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    seen: list[int] = []
    written(teacher, tokenizer, 3, progress=seen.append)
    assert seen == [3 * tokens for tokens in range(2, 25)]


def test_the_next_document_begins_behind_the_end_of_the_last() -> None:
    row = Row(openings_of([WORD]), torch.Generator().manual_seed(0))
    assert [row.take(token) for token in (-1, 3, END, -1, 4)] == [WORD, 3, END, WORD, 4]


def test_a_mark_that_also_ends_documents_is_not_doubled() -> None:
    row = Row(openings_of([END], mark=END), torch.Generator().manual_seed(0))
    assert [row.take(token) for token in (-1, 3, END, 4, 5)] == [END, 3, END, 4, 5]


def test_a_question_is_followed_by_its_answer() -> None:
    openings = openings_of([WORD], chat=True)
    generator = next(
        seeded
        for seed in itertools.count()
        if len(openings.draw(torch.Generator().manual_seed(seed))) == 2
        for seeded in (torch.Generator().manual_seed(seed),)
    )
    row = Row(openings, generator)
    # 9 ends the question and is the first token of the answer's frame; it is not written twice.
    assert [row.take(token) for token in (-1, -1, 3, 9, -1, 4)] == [7, 8, 3, 9, 10, 4]


def test_a_chat_template_gives_the_frames_of_question_and_answer(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = CHAT
    openings = Openings.of(teacher, tokenizer)
    assert tokenizer.decode(openings.question) == "<|user|>"
    assert tokenizer.decode(openings.answer) == "<|end|><|bot|>"
    assert openings.mark is None, "the marks of turns open no document"


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[7].content.x }}", "{% for", ENDLESS])
def test_a_chat_template_that_fails_or_does_not_end_gives_no_frames(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 0.2)
    tokenizer.chat_template = template
    assert Openings.of(teacher, tokenizer).question == ()


@pytest.mark.parametrize(
    ("name", "rows", "found"), [("<|endoftext|>", 1, True), ("<|endoftext|>", 0, False), ("<|other|>", 1, False)]
)
def test_a_chat_model_opens_documents_by_the_mark_of_its_pretraining_where_it_still_has_one(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rows: int,
    found: bool,
) -> None:
    tokenizer.chat_template = CHAT
    tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    mark = tokenizer.convert_tokens_to_ids(name)
    monkeypatch.setattr(teacher.config, "vocab_size", mark + rows)
    assert Openings.of(teacher, tokenizer).mark == (mark if found else None)


@pytest.mark.parametrize(
    ("mark", "chat", "kinds"),
    [
        (END, True, {(END,), QUESTION}),
        (END, False, {(END,), (WORD,)}),
        (None, True, {(WORD,), QUESTION}),
        (None, False, {(WORD,)}),
    ],
)
def test_documents_are_of_two_kinds_equally_often_and_a_word_opens_what_a_model_lacks(
    mark: int | None, chat: bool, kinds: set[tuple[int, ...]]
) -> None:
    openings = openings_of([WORD], mark=mark, chat=chat)
    generator = torch.Generator().manual_seed(0)
    seen = Counter(openings.draw(generator)[0] for _ in range(256))
    assert seen.keys() == kinds
    assert min(seen.values()) > 96


def test_each_word_opens_documents(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    openings = Openings.of(teacher, tokenizer)
    generator = torch.Generator().manual_seed(0)
    assert len({openings.draw(generator) for _ in range(64)}) > 16


def test_a_chat_template_that_refuses_a_lone_question_is_left_out(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = "{{ raise_exception('a system message is needed') }}"
    assert Openings.of(teacher, tokenizer).question == ()


def test_a_mark_that_the_tokenizer_puts_before_every_text_opens_words_and_documents(teacher: PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.chat_template = CHAT
    openings = Openings.of(teacher, tokenizer)
    assert (openings.prefix, openings.mark) == ((0,), 0)


def test_words_have_a_capital_whatever_marks_the_space_before_them(teacher: PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Word", "ĠWord", "▁Word", "Ġword", "ĠWORD", "W7"])
    teacher.config.vocab_size, vocabulary = len(tokenizer), teacher.config.vocab_size
    words = teacher_text.word_tokens(teacher, tokenizer)
    teacher.config.vocab_size = vocabulary
    assert tokenizer.convert_ids_to_tokens(words.tolist()) == ["Word", "ĠWord", "▁Word"]


def test_what_is_improbable_is_never_drawn() -> None:
    row = Row(openings_of([WORD]), torch.Generator().manual_seed(0))
    row.take(-1)
    logits = torch.tensor([[0.0, 5.0, 4.0, 1.9]])  # 1.9 is e^-3.1 = 0.045 times as probable as 5
    sampling = Sampling(min_p=0.1)
    generator = torch.Generator().manual_seed(0)
    seen = {int(teacher_text.next_tokens(logits, [row], torch.ones(1), sampling, generator)) for _ in range(400)}
    assert seen == {1, 2}


def test_each_row_draws_at_a_temperature_of_its_own_which_also_decides_what_is_improbable() -> None:
    rows = [Row(openings_of([WORD]), torch.Generator().manual_seed(0)) for _ in range(2)]
    for row in rows:
        row.take(-1)
    logits = torch.tensor([[0.0, 5.0, 4.0, 1.9]]).expand(2, -1)
    temperatures, generator = torch.tensor([1.0, 2.0]), torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [teacher_text.next_tokens(logits, rows, temperatures, Sampling(min_p=0.1), generator) for _ in range(4000)]
    )
    seen = torch.stack([torch.bincount(tokens, minlength=4) / 4000 for tokens in drawn.T])
    likely = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])  # 1.9: e^-3.1 = 0.045, and e^-1.55 = 0.21
    expected = (logits / temperatures[:, None]).softmax(-1) * likely
    torch.testing.assert_close(seen, expected / expected.sum(-1, keepdim=True), atol=0.03, rtol=0)


def test_the_first_token_of_a_marked_document_is_drawn_from_all() -> None:
    row = Row(openings_of([WORD]), torch.Generator().manual_seed(0))
    row.given, row.at_beginning = [], True
    logits = torch.tensor([[-10.0, 5.0, 4.0, 1.9]])  # -10 is e^-3 = 0.05 times as probable as 5, and e^-15 at 1.0
    sampling = Sampling(min_p=0.1, opening_temperature=5.0)
    generator = torch.Generator().manual_seed(0)
    seen = {int(teacher_text.next_tokens(logits, [row], torch.ones(1), sampling, generator)) for _ in range(400)}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"coolest": 0.0}, {"coolest": 1.3}, {"min_p": 1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"sample|min_p"):
        Sampling(**wrong)


def test_the_temperatures_of_the_rows_lie_evenly_between_the_bounds(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def recorded(logits: torch.Tensor, rows: object, temperatures: torch.Tensor, *_: object) -> torch.Tensor:
        seen.extend(temperatures.tolist())
        return logits.argmax(-1)

    monkeypatch.setattr(teacher_text, "next_tokens", recorded)
    for _ in sample(teacher, tokenizer, 5, 2, Sampling(batch=2, coolest=0.8, hottest=1.2), seed=0):
        pass
    assert sorted(seen) == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2])

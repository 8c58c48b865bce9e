"""How text becomes windows of tokens."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from app.sources.documents import Document, to_line
from modelpress.contract.recipe import Recipe
from tests.support.jobs import context_of
from tests.support.text_models import byte_tokenizer, write_tiny_model
from workers.compression import chat_template
from workers.messages import Assignment, AttemptFailed
from workers.stages import calibrate
from workers.stages.context import Context

RECIPE: dict[str, Any] = {
    "model": "local:model",
    "target_ratio": 1.3,
    "calibration": {"datasets": ["local:a.jsonl"], "sequences": 4, "length": 16},
    "evaluation": {"datasets": ["local:e.jsonl"], "window": 16, "max_tokens": 32},
}


class Job:
    """The stage on texts that a test writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        write_tiny_model(directory / "model", blocks=1)
        self.tokenizer = byte_tokenizer()
        self.texts: dict[str, Path] = {}
        self.write("e", "e" * 32)

    def write(self, name: str, *documents: Document) -> None:
        path = self.directory / f"{name}.jsonl"
        path.write_text("".join(map(to_line, documents)))
        self.texts[f"local:{name}.jsonl"] = path

    def windows(self, **sections: Any) -> Context:
        """A context in which the stage is done."""
        self.tokenizer.save_pretrained(self.directory / "model")
        assignment = Assignment(
            job_id="job",
            attempt=1,
            recipe=Recipe.model_validate({**RECIPE, **sections}),
            model_path=self.directory / "model",
            texts=self.texts,
            work_dir=self.directory / "work",
            device="cpu",
            threads=1,
        )
        context = context_of(assignment)
        context.stage = "calibrate"
        context.results["calibrate"] = context.bench.begin("calibrate")
        calibrate.run(context, context.results["calibrate"])
        return context

    def letters(self, windows: Tensor) -> list[str]:
        """Return the text of each window, with '|' for the end of a document."""
        return [self.tokenizer.decode(window).replace("<|end|>", "|") for window in windows]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def distillation(*names: str, tokens: int) -> dict[str, Any]:
    return {"datasets": [f"local:{name}.jsonl" for name in names], "tokens": tokens, "length": 16, "batch_size": 1}


def test_documents_follow_each_other_with_an_end_between_them(job: Job) -> None:
    job.write("a", "x" * 20, "y" * 5, "z" * 40)
    context = job.windows(distillation=distillation("a", tokens=64))
    assert sorted(job.letters(calibrate.distillation(context))) == ["x" * 16, "xxxx|yyyyy|zzzzz", "z" * 16, "z" * 16]


def test_a_tokenizer_without_an_end_puts_nothing_between(job: Job) -> None:
    job.tokenizer.eos_token = None
    job.write("a", "x" * 20, "y" * 12)
    context = job.windows(distillation=distillation("a", tokens=32))
    assert sorted(job.letters(calibrate.distillation(context))) == ["x" * 16, "xxxx" + "y" * 12]


def test_no_more_is_trained_on_than_was_asked_for(job: Job) -> None:
    job.write("a", "x" * 500)
    assert calibrate.distillation(job.windows(distillation=distillation("a", tokens=40))).shape == (3, 16)


def test_the_seed_decides_which_windows_are_trained_on(job: Job) -> None:
    job.write("a", "".join(chr(97 + index % 26) for index in range(600)))
    wanted = distillation("a", tokens=64)
    first, again, other = (
        calibrate.distillation(job.windows(distillation=wanted, seed=seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_mixture_is_even_although_one_text_is_short(job: Job) -> None:
    job.write("a", "a" * 32)
    job.write("b", "b" * 160)
    windows = calibrate.distillation(job.windows(distillation=distillation("a", "b", tokens=128)))
    assert job.letters(windows) == ["a" * 16] * 4 + ["b" * 16] * 4


def test_a_mixture_keeps_its_shares_although_a_text_is_short(job: Job) -> None:
    job.write("a", "a" * 32)
    job.write("b", "b" * 160)
    asked = distillation("a", "b", tokens=96) | {"shares": [2, 1]}
    assert job.letters(calibrate.distillation(job.windows(distillation=asked))) == ["a" * 16] * 4 + ["b" * 16] * 2


def test_of_text_that_is_short_altogether_the_share_that_is_least_short_is_given_once(job: Job) -> None:
    job.write("a", "a" * 32)
    job.write("b", "b" * 48)
    asked = distillation("a", "b", tokens=9_600) | {"shares": [1, 3]}
    assert job.letters(calibrate.distillation(job.windows(distillation=asked))) == ["a" * 16] * 2 + ["b" * 16] * 6


def test_text_that_is_short_altogether_is_given_once(job: Job) -> None:
    job.write("a", "a" * 32)
    job.write("b", "b" * 48)
    windows = calibrate.distillation(job.windows(distillation=distillation("a", "b", tokens=10_000)))
    assert job.letters(windows) == ["a" * 16] * 3 + ["b" * 16] * 3


def test_calibration_draws_as_many_sequences_from_each_text(job: Job) -> None:
    for name in "abc":
        job.write(name, name * 200)
    asked = {"datasets": [f"local:{name}.jsonl" for name in "abc"], "sequences": 7, "length": 16}
    windows = calibrate.calibration(job.windows(calibration=asked))
    assert job.letters(windows) == ["a" * 16] * 2 + ["b" * 16] * 2 + ["c" * 16] * 3


def test_calibration_draws_by_the_shares(job: Job) -> None:
    for name in "ab":
        job.write(name, name * 200)
    asked = {"datasets": ["local:a.jsonl", "local:b.jsonl"], "shares": [1, 2], "sequences": 6, "length": 16}
    windows = calibrate.calibration(job.windows(calibration=asked))
    assert job.letters(windows) == ["a" * 16] * 2 + ["b" * 16] * 4


def test_evaluation_reads_the_documents_as_one_text(job: Job) -> None:
    job.write("a", "a" * 16)
    job.write("e", "e" * 10, "f" * 30)
    windows = calibrate.evaluations(job.windows())["local:e.jsonl"]
    assert job.letters(windows) == ["e" * 10 + "\n\n" + "f" * 4, "f" * 16]


TALK: Document = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def test_a_conversation_is_written_by_the_chat_template(job: Job) -> None:
    job.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}."
    job.write("a", TALK)
    windows = calibrate.distillation(job.windows(distillation=distillation("a", tokens=32)))
    assert sorted(job.letters(windows)) == ["<user>question<a", "ssistant>answer."]


def test_a_conversation_that_the_template_refuses_is_said_to_be_refused(job: Job) -> None:
    job.tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
    job.write("a", TALK)
    with pytest.raises(AttemptFailed, match="refuses a conversation of user, assistant: no system message, please"):
        job.windows()


def test_a_conversation_without_a_template_is_its_contents(job: Job) -> None:
    job.write("a", TALK)
    windows = calibrate.distillation(job.windows(distillation=distillation("a", tokens=16)))
    assert job.letters(windows) == ["question\n\nanswer"]


def test_a_text_of_no_documents_is_too_short(job: Job) -> None:
    job.write("a")
    with pytest.raises(AttemptFailed, match=r"has 0 tokens.*lower calibration\.length"):
        job.windows()


def test_a_long_text_is_read_in_pieces_that_end_with_a_line_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "PIECE", 8)
    assert list(calibrate.pieces("ab\ncd\nefgh ij klmnopqrstu")) == ["ab\ncd\n", "efgh ij ", "klmnopqr", "stu"]


def test_pieces_change_no_token_of_a_text(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.write("a", "some words\nand more " * 20)
    whole = job.windows(distillation=distillation("a", tokens=64))
    monkeypatch.setattr(calibrate, "PIECE", 7)
    assert calibrate.distillation(job.windows(distillation=distillation("a", tokens=64))).equal(
        calibrate.distillation(whole)
    )


def test_of_an_evaluation_text_no_more_is_read_than_is_measured(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "PIECE", 8)
    read: list[str] = []

    def tokenizer(text: str, **options: Any) -> dict[str, list[int]]:
        read.append(text)
        return {"input_ids": [1] * len(text)}

    assert len(calibrate.first_tokens(tokenizer, ["12345678" * 10, "never"], 20)) == 20
    assert read == ["12345678"] * 3


def with_beginning(job: Job) -> int:
    """Let the tokenizer put a token before every text."""
    begin = job.tokenizer.bos_token_id
    job.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", begin)]
    )
    return begin


def test_every_window_begins_as_the_tokenizer_begins_a_text(job: Job) -> None:
    begin = with_beginning(job)
    job.write("a", "x" * 70)
    context = job.windows(distillation=distillation("a", tokens=32))
    windows = [
        calibrate.calibration(context), calibrate.distillation(context), *calibrate.evaluations(context).values()
    ]  # fmt: skip
    for ids in windows:
        assert ids.shape[1] == 16
        assert (ids[:, 0] == begin).all()
        assert (ids[:, 1:] != begin).all()


def test_as_many_evaluation_windows_begin_so_as_would_without(job: Job) -> None:
    with_beginning(job)
    job.write("a", "x" * 70)
    (windows,) = calibrate.evaluations(job.windows(evaluation={**RECIPE["evaluation"], "max_tokens": 31})).values()
    assert windows.shape == (1, 16)


def test_a_beginning_that_the_text_has_already_is_not_doubled(job: Job) -> None:
    begin = with_beginning(job)
    job.write("a", "<|end|>" + "x" * 62)
    ids = calibrate.calibration(job.windows())
    assert (ids == begin).sum() == len(ids)


def test_a_tokenizer_that_begins_no_text_leaves_windows_as_they_are(job: Job) -> None:
    job.write("a", "x" * 64)
    assert (calibrate.calibration(job.windows()) != job.tokenizer.bos_token_id).all()


def test_a_token_without_a_row_is_named_before_anything_is_computed(job: Job) -> None:
    job.tokenizer.add_tokens(["fox"])
    job.write("e", "a fox " * 32)
    with pytest.raises(AttemptFailed, match="'fox' with the number 257, but the embedding has 257 rows") as failed:
        job.write("a", "x" * 64)
        job.windows()
    assert failed.value.code == "invalid_model"


def test_a_text_of_unknown_tokens_is_refused(job: Job) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "known": 2}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    job.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    job.write("a", "strange words " * 40)
    job.write("e", "known " * 40)
    with pytest.raises(AttemptFailed, match="does not know 100% of the text for calibration") as failed:
        job.windows()
    assert failed.value.code == "no_tokenizer"


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_chat_template_that_does_not_end_is_given_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 0.2)
    job.tokenizer.chat_template = ENDLESS
    job.write("a", [{"role": "user", "content": "x"}])
    with pytest.raises(AttemptFailed, match=r"over 0\.2 s") as failed:
        job.windows()
    assert failed.value.code == "conversation_refused"


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[7].content.x }}", "{{ ''.__class__.__mro__ }}", "{% x %}"]
)
def test_a_chat_template_that_fails_is_said_to_refuse(job: Job, template: str) -> None:
    job.tokenizer.chat_template = template
    job.write("a", [{"role": "user", "content": "x"}])
    with pytest.raises(AttemptFailed) as failed:
        job.windows()
    assert failed.value.code == "conversation_refused"

"""llama.cpp makes of text what the original's tokenizer makes of it, with what a GGUF file says of the tokenizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

from modelpress.spec.errors import NoTokenizer
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level, sentencepiece_like
from tests.support.waiting import PATIENCE_SECONDS
from workers.compression.companions import sample_texts
from workers.compression.engines.ask import Answers, Questions, ask_all
from workers.compression.formats.gguf import Gguf
from workers.compression.formats.gguf.opening import FILE
from workers.compression.formats.gguf.vocabulary import vocabulary
from workers.compression.overlay import Overlay

pytest.importorskip("xllamacpp", reason="llama.cpp is an optional extra")

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
ROWS = 640


def split(pattern: str) -> PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = split(CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST)
LLAMA3 = split(CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST)

KINDS: Mapping[str, PreTrainedTokenizerFast] = {
    "gpt-2": byte_level([], words=True),
    "smollm": byte_level([pre_tokenizers.Digits(individual_digits=True)], words=True),
    "qwen2": byte_level([QWEN2], words=False),
    "dbrx": byte_level([LLAMA3], words=False),
    "llama": sentencepiece_like(),
    "gemma": sentencepiece_like(leading_space=False),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answers]]:
    asked = []
    for tokenizer in KINDS.values():
        directory = tmp_path_factory.mktemp("model")
        save_tiny_model("llama", directory / "source", vocab_size=ROWS)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(directory / "source")
        Gguf().write(Overlay.open(directory / "source"), directory / "written")
        asked.append((directory / "written" / FILE, Questions(texts=sample_texts(tokenizer))))
    with ask_all(asked, timeout=PATIENCE_SECONDS) as found:
        opened = [answer for answer in found if isinstance(answer, Answers)]
        yield dict(zip(KINDS, opened, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_text_becomes_the_same_tokens(kind: str, answers: dict[str, Answers]) -> None:
    tokenizer = KINDS[kind]
    expected = {text: tokenizer(text)["input_ids"] for text in sample_texts(tokenizer)}
    assert dict(zip(expected, answers[kind].tokenised, strict=True)) == expected


@pytest.mark.parametrize("kind", ["gpt-2", "llama"])
def test_the_chat_template_is_in_the_file(kind: str, answers: dict[str, Answers]) -> None:
    assert answers[kind].template == TEMPLATE


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"llama", "gemma"}))
def test_the_way_in_which_text_is_split_is_recognised_by_what_it_is(kind: str) -> None:
    assert vocabulary(KINDS[kind], ROWS)["tokenizer.ggml.pre"] == kind


def test_words_that_are_tokens_and_not_merged_have_a_name_of_their_own() -> None:
    tokenizer = byte_level([LLAMA3], words=False)
    tokenizer.backend_tokenizer.model.ignore_merges = True
    assert vocabulary(tokenizer, ROWS)["tokenizer.ggml.pre"] == "llama-bpe"


def test_special_tokens_and_further_ends_are_stated() -> None:
    said = vocabulary(sentencepiece_like(), ROWS, ends=[2, 5])
    assert said["tokenizer.ggml.bos_token_id"] == 1
    assert said["tokenizer.ggml.eos_token_id"] == 2
    assert said["tokenizer.ggml.eot_token_id"] == 5
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.add_eos_token"] is False
    assert vocabulary(KINDS["gpt-2"], ROWS)["tokenizer.ggml.add_bos_token"] is False


def test_a_vocabulary_is_padded_to_the_rows_of_the_embedding() -> None:
    said = vocabulary(KINDS["gpt-2"], ROWS)
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == ROWS
    assert said["tokenizer.ggml.tokens"][-1] == f"[PAD{ROWS - 1}]"


def test_an_unknown_way_to_split_text_is_refused() -> None:
    tokenizer = byte_level([split("[a-z]+")], words=False)
    with pytest.raises(NoTokenizer, match=r"no name for the way in which this tokenizer splits text"):
        vocabulary(tokenizer, ROWS)


def test_a_change_of_the_text_that_llama_cpp_lacks_is_refused() -> None:
    tokenizer = byte_level([], words=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(NoTokenizer, match="Lowercase"):
        vocabulary(tokenizer, ROWS)


def test_another_kind_than_bpe_is_refused() -> None:
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0))
    with pytest.raises(NoTokenizer, match="'Unigram'"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=unigram), ROWS)


def test_a_model_without_a_tokenizer_gives_a_file_without_one(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "source")
    Gguf().write(Overlay.open(tmp_path / "source"), tmp_path / "written")
    with ask_all([(tmp_path / "written" / FILE, Questions())], timeout=PATIENCE_SECONDS) as (found,):
        assert isinstance(found, Answers) and found.template is None

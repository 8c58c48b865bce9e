"""llama.cpp is asked in a process of its own, and what goes wrong there is an error here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import save_tiny_model, token_ids
from tests.support.tokenizers import byte_level
from tests.support.waiting import PATIENCE_SECONDS
from workers.compression.engines.ask import Questions, ask
from workers.compression.engines.llama_cpp import EngineError
from workers.compression.formats.gguf import Gguf
from workers.compression.formats.gguf.opening import FILE
from workers.compression.overlay import Overlay

pytest.importorskip("xllamacpp", reason="llama.cpp is an optional extra")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory, tokenizer = tmp_path_factory.mktemp("model"), byte_level([], words=True)
    save_tiny_model("llama", directory / "source", vocab_size=len(tokenizer), max_position_embeddings=256)
    tokenizer.save_pretrained(directory / "source")
    Gguf().write(Overlay.open(directory / "source"), directory / "written")
    yield directory / "written" / FILE


def test_one_opening_answers_several_questions(file: Path) -> None:
    questions = Questions(ids=token_ids(2, 8).numpy(), texts=["the lazy dog"], generate=3, speed=(16, 4), exact=False)
    with ask(file, questions, timeout=PATIENCE_SECONDS) as answers:
        assert answers.logits is not None and answers.logits.shape[:2] == (2, 8)
        assert len(answers.generated) <= 3
        assert answers.tokenised[0]
        assert answers.speed is not None and answers.speed.read > 0 and answers.speed.generated > 0


def test_a_process_that_takes_too_long_is_ended(file: Path) -> None:
    with pytest.raises(EngineError, match=r"longer than 0\.01 seconds"), ask(file, Questions(), timeout=0.01):
        pass

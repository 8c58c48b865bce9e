"""Ask llama.cpp about GGUF files, in a fresh process with a time limit.

with ask(path, Questions(ids=ids, texts=texts), timeout=60) as answers:
    answers.logits          # [N, T, V], mapped from disk while the block runs
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.compression.engines.answer import ANSWERS, IDS, LOGITS, QUESTIONS
from workers.compression.engines.llama_cpp import EngineError

_MODULE = "workers.compression.engines.answer"
_LAST_OF_ERROR = 2000


@dataclass(frozen=True)
class Questions:
    """The questions about one GGUF file.

    Attributes:
        ids: token ids [N, T] whose logits are wanted; None: none.
        texts: texts to tokenise.
        generate: tokens to generate greedily behind the first four of `ids`.
        speed: tokens of the prompt and tokens to generate whose speed is measured; None: none.
        exact: whether keys and values are kept in 32 bits and attention is computed plainly; else as in a server.
        threads: threads to compute with.
    """

    ids: NDArray[np.integer[Any]] | None = None
    texts: Sequence[str] = ()
    generate: int = 0
    speed: tuple[int, int] | None = None
    exact: bool = True
    threads: int = 1

    @property
    def context(self) -> int:
        """The number of tokens that must fit into the context."""
        longest = 0 if self.ids is None else self.ids.shape[1]
        return max(longest, 4 + self.generate, sum(self.speed or ()), 16)


@dataclass(frozen=True)
class Speed:
    """Tokens per second of reading a prompt and of generating one token after the other."""

    read: float
    generated: float


@dataclass(frozen=True)
class Answers:
    """The answers of llama.cpp about one GGUF file.

    Attributes:
        version: which release of llama.cpp.
        parameters: weights in the file.
        logits: [N, T, V] for the ids that were asked about; mapped from a file that is deleted afterwards.
        tokenised: the token ids of each text.
        generated: generated token ids.
        template: the chat template; None if the file has none.
        speed: None unless it was asked for.
    """

    version: str
    parameters: int
    logits: NDArray[np.float32] | None
    tokenised: list[list[int]]
    generated: list[int]
    template: str | None
    speed: Speed | None


@contextmanager
def ask(file: Path, questions: Questions, *, timeout: float | None = None) -> Iterator[Answers]:
    """Open `file` in llama.cpp in a fresh process, and give its answers.

    Raises EngineError if the file does not open, llama.cpp fails, or it takes longer than `timeout` seconds.
    """
    with ask_all([(file, questions)], timeout=timeout) as (answers,):
        if isinstance(answers, EngineError):
            raise answers
        yield answers


@contextmanager
def ask_all(
    asked: Sequence[tuple[Path, Questions]], *, timeout: float | None = None
) -> Iterator[list[Answers | EngineError]]:
    """Open several files one after the other in the same fresh process; see `ask`.

    A file that does not open has an error in place of answers. Raises EngineError where llama.cpp fails altogether.
    """
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as folder:
        directories = [Path(folder) / str(number) for number in range(len(asked))]
        arguments: list[str] = []
        for directory, (file, questions) in zip(directories, asked, strict=True):
            directory.mkdir()
            _write(questions, directory)
            arguments += [str(file.resolve()), str(directory)]
        _run(arguments, Path(folder), timeout)
        yield [_read(directory) for directory in directories]


def _write(questions: Questions, directory: Path) -> None:
    speed = questions.speed
    stated = {
        "context": questions.context,
        "threads": questions.threads,
        "exact": questions.exact,
        "texts": list(questions.texts),
        "generate": questions.generate,
        "speed": None if speed is None else {"prompt": speed[0], "generated": speed[1]},
    }
    (directory / QUESTIONS).write_text(json.dumps(stated), encoding="utf-8")
    np.save(directory / IDS, np.zeros((0, 0), np.int64) if questions.ids is None else questions.ids)


def _read(directory: Path) -> Answers | EngineError:
    found = json.loads((directory / ANSWERS).read_text(encoding="utf-8"))
    if "error" in found:
        return EngineError(found["error"])
    return Answers(
        found["version"],
        found["parameters"],
        np.load(directory / LOGITS, mmap_mode="r") if (directory / LOGITS).exists() else None,
        found["tokenised"],
        found["generated"],
        found["template"],
        Speed(**found["speed"]) if "speed" in found else None,
    )


def _run(arguments: Sequence[str], directory: Path, timeout: float | None) -> None:
    """Run the process that answers. Raises EngineError if it fails."""
    command = [sys.executable, "-I", "-m", _MODULE, *arguments]
    try:
        process = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"llama.cpp took longer than {timeout} seconds") from error
    if process.returncode != 0:
        raise EngineError(f"llama.cpp failed: {process.stderr[-_LAST_OF_ERROR:].strip()}")

"""Open GGUF files in llama.cpp, and answer the questions in a directory for each.

    python -m workers.compression.engines.answer FILE DIRECTORY [FILE DIRECTORY ...]

`ask` starts this as a process of its own and reads what it writes. An error inside llama.cpp then ends this process
only.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from workers.compression.engines.llama_cpp import EngineError, LlamaCpp, engine_version

QUESTIONS, ANSWERS, IDS, LOGITS = "questions.json", "answers.json", "ids.npy", "logits.npy"


def answer(file: Path, directory: Path) -> dict[str, Any]:
    """Return the answers to the questions in `directory` about a GGUF file; logits are written there."""
    asked = json.loads((directory / QUESTIONS).read_text(encoding="utf-8"))
    found: dict[str, Any] = {"version": engine_version(), "generated": []}
    with LlamaCpp.open(file, asked["context"], threads=asked["threads"], exact=asked["exact"]) as model:
        found |= {
            "parameters": model.parameters,
            "template": model.template,
            "tokenised": [model.tokens(text) for text in asked["texts"]],
        }
        ids = np.load(directory / IDS)
        if ids.size:
            shape = (*ids.shape, model.vocabulary)
            logits = np.lib.format.open_memmap(directory / LOGITS, mode="w+", dtype=np.float32, shape=shape)
            for row, sequence in zip(logits, ids.tolist(), strict=True):
                row[:] = model.logits(sequence)
            logits.flush()
            found["generated"] = model.generate(ids[0, :4].tolist(), asked["generate"])
        if asked["speed"]:
            found["speed"] = _speed(model, **asked["speed"])
    return found


def _speed(model: LlamaCpp, prompt: int, generated: int) -> dict[str, float]:
    """Return tokens per second of reading a prompt and of generating."""
    ids = [3 + number % (model.vocabulary - 3) for number in range(prompt)]
    model.logits(ids[:8])  # the first run of a file reads it from disk
    model.forget()
    start = time.perf_counter()
    model.go_on(ids)
    read = time.perf_counter()
    for number in range(generated):
        model.go_on([ids[number % prompt]])
    end = time.perf_counter()
    return {"read": prompt / (read - start), "generated": generated / (end - read)}


def main(arguments: list[str]) -> None:
    """Answer the questions about each file; a file that does not open is an answer, too."""
    for file, directory in zip(arguments[::2], arguments[1::2], strict=True):
        try:
            found = answer(Path(file), Path(directory))
        except EngineError as error:
            found = {"error": str(error)}
        (Path(directory) / ANSWERS).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

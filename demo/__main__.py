"""Start a service, compress a real model over HTTP, open the result, and compare it with the original.

Everything is written to .demo/ in the working directory. The checkpoint and the logs remain; the service's own data is
removed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from app.serve import running_service
from app.settings import Settings
from demo.models import Original, find_original
from modelpress.cli.failures import failures_explained
from modelpress.cli.follow import download, follow, print_comparison
from modelpress.cli.recipes import make_recipe
from modelpress.cli.terminal import STDOUT
from modelpress.client import Client
from modelpress.contract.job import Job
from modelpress.contract.recipe import Recipe
from modelpress.errors import ModelpressError

DIRECTORY = Path(".demo")
# Small enough for two cores to finish within minutes; the service's defaults use more text.
CALIBRATION = {"sequences": 16, "length": 512}
EVALUATION = {"max_tokens": 8192}
FORMATS = ("safetensors", "gguf")
PROMPT = "A library is a place where people"
QUESTION = "What is a library?"


class NothingGenerated(ModelpressError):
    """A model could not be opened."""

    code = "nothing_generated"
    title = "A model could not be opened"


def demo(
    model: Annotated[str | None, typer.Option(help="A hub id or a path, instead of the bundled model.")] = None,
    ratio: Annotated[float, typer.Option(help="Bytes of the weights before / after.")] = 3.5,
    method: Annotated[str, typer.Option(help="How the model is made smaller.")] = "auto",
) -> None:
    """Compress a real model end to end, and compare it with the original."""
    directory = DIRECTORY.resolve()
    directory.mkdir(exist_ok=True)
    original = find_original(model)
    STDOUT.print(original.provenance, markup=False)
    STDOUT.print(
        "Text: the documentation of Python's standard library. The evaluation uses other parts of it than the "
        "calibration."
    )
    recipe = make_recipe(
        {
            "model": original.reference,
            "target_ratio": ratio,
            "method": method,
            "formats": FORMATS,
            "calibration": CALIBRATION,
            "evaluation": EVALUATION,
        }
    )
    checkpoint = directory / f"{original.name}-{ratio:g}x"
    shutil.rmtree(checkpoint, ignore_errors=True)

    with tempfile.TemporaryDirectory(dir=directory, prefix="service-") as scratch:
        job = compress(original, recipe, checkpoint, Path(scratch), directory / "logs")
        before = written("generate.py", str(original.path or original.reference), PROMPT, Path(scratch))
        after = written("generate.py", str(checkpoint), PROMPT, Path(scratch))
        answer = written("chat.py", str(checkpoint / "gguf" / "model.gguf"), QUESTION, Path(scratch))

    print_comparison(job)
    STDOUT.print(f"\nThe original continues:         {before}\nThe compressed model continues: {after}\n", markup=False)
    STDOUT.print(f"In llama.cpp, asked {QUESTION!r}, it answers: {answer}\n", markup=False)
    STDOUT.print(f"The checkpoint is in {checkpoint}, and {checkpoint}/gguf/model.gguf for llama.cpp.", markup=False)
    STDOUT.print("Open it with AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True).")


def compress(original: Original, recipe: Recipe, checkpoint: Path, data_dir: Path, log_dir: Path) -> Job:
    """Return the finished job, computed by a service on a free port that runs only for this function.

    The service is used over HTTP alone.
    """
    settings = Settings(
        data_dir=data_dir,
        database_url=None,
        redis_url=None,
        port=0,
        model_roots=(original.path.parent,) if original.path else (),
        hub_enabled=original.path is None,
    )
    with ExitStack() as stack:
        service = stack.enter_context(running_service(settings, log_dir=log_dir))
        client = stack.enter_context(Client(service.address, patience_seconds=10.0))
        job = client.submit(recipe)
        STDOUT.print(f"POST {service.address}/jobs: accepted as {job.id}", markup=False)
        job = follow(client, job.id, service.check)
        download(client, job.id, checkpoint)
    return job


def written(script: str, model: str, prompt: str, scratch: Path) -> str:
    """Return what a script beside this one makes of a prompt, in a fresh process with a stock engine.

    Raises:
        NothingGenerated: the engine cannot open the model.
    """
    caches = {"HF_HOME": str(scratch / "huggingface"), "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), model, prompt],
        env=os.environ | caches | {"PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        raise NothingGenerated(f"{model} cannot be opened by {script}: {' '.join(reason)}")
    return " ".join(done.stdout.split())


if __name__ == "__main__":
    with failures_explained():
        typer.run(demo)

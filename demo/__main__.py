"""Starts a service for the occasion, has it compress a real model over HTTP, opens the result, and compares.

Everything it writes lies under .demo/ of the working directory. The checkpoint and the logs stay, the service's own
data goes.
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

from app.cli.failures import failures_explained
from app.cli.follow import download, follow, print_comparison
from app.cli.recipes import make_recipe
from app.cli.terminal import STDOUT
from app.client import Client
from app.contract.job import Job
from app.contract.recipe import Recipe
from app.errors import ModelpressError
from app.serve import running_service
from app.settings import Settings
from demo.models import Original, find_original

DIRECTORY = Path(".demo")
# Sized so that two cores are done within minutes; the service's own defaults measure on more.
CALIBRATION = {"sequences": 16, "length": 512}
EVALUATION = {"max_tokens": 8192}
PROMPT = "A library is a place where people"


class NothingGenerated(ModelpressError):
    code = "nothing_generated"
    title = "A model could not be opened"


def demo(
    model: Annotated[
        str | None, typer.Option(help="A hub id or a path, instead of the model that comes along.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="Stored parameters before / after.")] = 1.3,
    method: Annotated[str, typer.Option(help="How the model is made smaller.")] = "low_rank",
) -> None:
    """Compress a real model end to end, and compare it with the original."""
    directory = DIRECTORY.resolve()
    directory.mkdir(exist_ok=True)
    original = find_original(model)
    STDOUT.print(original.provenance, markup=False)
    STDOUT.print(
        "Text: the documentation of Python's own standard library; measured on parts that the fit did not see."
    )
    recipe = make_recipe(
        {
            "model": original.reference,
            "target_ratio": ratio,
            "method": method,
            "calibration": CALIBRATION,
            "evaluation": EVALUATION,
        }
    )
    checkpoint = directory / f"{original.name}-{ratio:g}x"
    shutil.rmtree(checkpoint, ignore_errors=True)

    with tempfile.TemporaryDirectory(dir=directory, prefix="service-") as scratch:
        job = compress(original, recipe, checkpoint, Path(scratch), directory / "logs")
        before = sentence(str(original.path or original.reference), Path(scratch))
        after = sentence(str(checkpoint), Path(scratch))

    print_comparison(job)
    STDOUT.print(f"\nThe original goes on:   {before}\nThe compressed goes on: {after}\n", markup=False)
    STDOUT.print(f"The checkpoint is in {checkpoint}", markup=False)
    STDOUT.print("AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True) opens it anywhere.")


def compress(original: Original, recipe: Recipe, checkpoint: Path, data_dir: Path, log_dir: Path) -> Job:
    """The finished job, done by a service on a free port that is asked by HTTP alone and ends with this function."""
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


def sentence(model: str, scratch: Path) -> str:
    """What the model makes of the prompt, in a fresh process with stock transformers."""
    generator = Path(__file__).with_name("generate.py")
    caches = {"HF_HOME": str(scratch / "huggingface"), "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, str(generator), model, PROMPT],
        env=os.environ | caches | {"PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        raise NothingGenerated(f"{model} cannot be opened with transformers: {' '.join(reason)}")
    return " ".join(done.stdout.split())


if __name__ == "__main__":
    with failures_explained():
        typer.run(demo)

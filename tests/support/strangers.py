"""What a client of the service does with a job: wait for it, download it, open it without anything of ours."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelpress.client import Client
from modelpress.contract.job import Job, State
from modelpress.contract.recipe import Recipe

OPEN = """
import os, sys, traceback
# transformers asks at the terminal whether to trust code that comes with a checkpoint.
asked, told = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)

def watch(event, arguments):
    assert event not in ("socket.connect", "socket.getaddrinfo"), f"the network was asked: {arguments}"

sys.addaudithook(watch)
from transformers import AutoModelForCausalLM, AutoTokenizer

def opened(directory):
    model, loading = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    ids = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)("the quick", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids.shape[1] + 4
    assert not {"app", "modelpress", "workers"} & sys.modules.keys()
    return sum(parameter.numel() for parameter in model.parameters())

for line in asked:
    try:
        print("opened", opened(line.rstrip()), file=told, flush=True)
    except Exception:
        print(traceback.format_exc().replace(chr(10), " | "), file=told, flush=True)
"""


def finish(client: Client, recipe: dict[str, Any]) -> Job:
    *_, job = client.wait(client.submit(Recipe.model_validate(recipe)).id)
    assert job.state is State.SUCCEEDED, job.error
    return job


class Stranger:
    """A process with stock transformers and nothing of ours, which opens one checkpoint after the other.

    Whatever asks the network meanwhile fails.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def parameters(self, checkpoint: Path) -> int:
        """Open a checkpoint, generate with it, and return how many distinct parameters it has."""
        assert (checkpoint / "compression_report.json").is_file()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(checkpoint, file=self.process.stdin, flush=True)
        word, _, rest = self.process.stdout.readline().partition(" ")
        assert word == "opened", word + rest
        return int(rest)

    def downloaded(self, client: Client, job: Job, directory: Path) -> int:
        """Download the checkpoint of a job, open it, and return how many distinct parameters it has."""
        client.download(job.id, directory / "checkpoint")
        return self.parameters(directory / "checkpoint")


@contextmanager
def stranger() -> Iterator[Stranger]:
    """Start the process, and end it."""
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", OPEN],
            cwd=home,
            env={"HF_HOME": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            yield Stranger(process)

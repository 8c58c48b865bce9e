"""What a client of the service does with a job: wait for it, download it, open it without anything of ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from app.client import Client
from app.contract.job import Job, State
from app.contract.recipe import Recipe

OPEN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, loading = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
ids = AutoTokenizer.from_pretrained(sys.argv[1])("the quick", return_tensors="pt").input_ids
assert model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids.shape[1] + 4
assert "app" not in sys.modules and "workers" not in sys.modules
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def finish(client: Client, recipe: dict[str, Any]) -> Job:
    *_, job = client.wait(client.submit(Recipe.model_validate(recipe)).id)
    assert job.state is State.SUCCEEDED, job.error
    return job


def open_elsewhere(client: Client, job: Job, directory: Path) -> int:
    """Downloads the checkpoint and opens it as a stranger; returns the distinct parameters that it has there."""
    checkpoint = directory / "checkpoint"
    client.download(job.id, checkpoint)
    return open_as_a_stranger(checkpoint)


def open_as_a_stranger(checkpoint: Path) -> int:
    assert (checkpoint / "compression_report.json").is_file()
    opened = subprocess.run(
        [sys.executable, "-I", "-c", OPEN, str(checkpoint)],
        cwd=checkpoint.parent,
        env={"HF_HOME": str(checkpoint.parent / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert opened.returncode == 0, opened.stderr
    return int(opened.stdout.split()[-1])

"""Open models as a client would, with torch and transformers alone, and print the peak memory of each in bytes.

    python -I open_and_run.py '{"directories": [...], "dtype": ..., "device": ..., "threads": ..., ...}'

Each model runs in a process of its own, forked before anything was opened. The figure is the peak resident memory of
that process, Python and the libraries included, or the peak allocation on the GPU where it ran on one. It is null where
the process was killed. This file is run, never imported.
"""

import json
import os
import resource
import sys
import threading
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from transformers import AutoModelForCausalLM

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of ru_maxrss."""


@torch.no_grad()
def open_and_run(directory: str, wanted: dict[str, Any], answer: Connection) -> None:
    """Open a model, read a prompt of random tokens, generate, and send the peak memory in bytes to `answer`."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    torch.set_num_threads(wanted["threads"])
    causal: Any = AutoModelForCausalLM
    model = causal.from_pretrained(
        directory,
        trust_remote_code=directory in wanted["trusted"],
        local_files_only=True,
        dtype=getattr(torch, wanted["dtype"]),
    )
    model.to(wanted["device"]).eval()
    ids = torch.randint(model.config.vocab_size, (1, wanted["prompt"]), device=wanted["device"])
    length = wanted["new_tokens"]
    model.generate(ids, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    answer.send(peak(wanted["device"]))


def exit_with_parent() -> None:
    """End this process as soon as its parent is gone: nobody is left to read its figure.

    It stays in its parent's process group, so a signal to the group ends it as well.
    """
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def peak(device: str) -> int:
    """Return the peak memory in bytes: GPU allocation on CUDA, otherwise the resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def measure_in_child(directory: str, wanted: dict[str, Any]) -> int | None:
    """Return the peak memory in bytes of a forked process that opens and runs the model; None where it died."""
    processes = get_context("fork")
    received, sent = processes.Pipe(duplex=False)
    process = processes.Process(target=open_and_run, args=(directory, wanted, sent))
    process.start()
    sent.close()
    try:
        found: int | None = received.recv()
    except EOFError:
        found = None
    process.join()
    return found


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    json.dump([measure_in_child(directory, request) for directory in request["directories"]], sys.stdout)

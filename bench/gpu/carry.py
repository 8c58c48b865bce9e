"""Put together what the machine with the GPU lacks, in a folder of two parts, each small enough for one call.

    python -m bench.gpu.carry MODEL.gguf --data ../shared/data --to .gpu

`first` has one part of the weights, `second` the other, the texts in token ids, the commit, and wheels for the Python
of that machine.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from bench.gpu.setting import TOKENS
from bench.gpu.weights import HALF, HALVES

WHEELS = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("compressed-tensors", "loguru", "gguf"),
    *("accelerate", "psutil"),
)
"""What the library needs besides torch, transformers and safetensors, as far as that machine may lack it."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

PYTHON = "3.12"

LIMIT = 64 * 2**20
"""The most bytes that a call carries: the tree and the folder that it names."""


def main(arguments: list[str]) -> None:
    """Make the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.carry", description=__doc__)
    parser.add_argument("model", type=Path, help="GGUF file of SmolLM2-135M")
    parser.add_argument("--data", type=Path, required=True, help="directory of text files")
    parser.add_argument("--to", type=Path, default=Path(".gpu"), help="folder to make")
    asked = parser.parse_args(arguments)
    first, second = (asked.to / half for half in HALVES)
    for folder in (first, second):
        folder.mkdir(parents=True, exist_ok=True)
    content = asked.model.read_bytes()
    # The second part has room for the rest.
    cut = len(content) * 11 // 20
    (first / HALF).write_bytes(content[:cut])
    (second / HALF).write_bytes(content[cut:])
    save_file(tokenised(asked.model, asked.data), asked.to / TOKENS)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    (second / "commit").write_text(commit)
    download_wheels(second / "wheels")
    check_sizes(asked.to, size_of_tree())


def check_sizes(carried: Path, tree: int) -> None:
    """Raise ValueError where a folder is too large for a call that also carries a tree of so many bytes."""
    for half in HALVES:
        size = tree + sum(file.stat().st_size for file in (carried / half).rglob("*") if file.is_file())
        if size > LIMIT:
            raise ValueError(f"{half} and the tree have {size} bytes, and a call carries at most {LIMIT}")


def size_of_tree() -> int:
    """Return the bytes of the files that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, capture_output=True
    )
    files = (Path(name.decode()) for name in listed.stdout.split(b"\0") if name)
    return sum(file.stat().st_size for file in files if file.is_file())


def tokenised(model: Path, data: Path) -> dict[str, torch.Tensor]:
    """Return the token ids [tokens] of every text file, by its name; int32, since the vocabulary is small."""
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    return {
        file.stem: torch.tensor(tokenizer(file.read_text(encoding="utf-8"), verbose=False)["input_ids"]).int()
        for file in sorted(data.glob("*.txt"))
    }


def download_wheels(folder: Path) -> None:
    """Download the wheels for the other machine, in the releases of this one."""
    found = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    pins = [line for line in found.stdout.splitlines() if line.partition("==")[0].replace("_", "-") in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    command += [option for platform in PLATFORMS for option in ("--platform", platform)]
    subprocess.run([*command, *pins], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

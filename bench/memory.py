"""How much memory the compression of a model of 2 GB takes at its peak, part by part.

    python -m bench.memory --sequences 8 --blocks 3

writes a random checkpoint of TinyLlama-1.1B's shape in bfloat16 into a temporary directory, runs every part of the
engine in a process of its own, in the environment that the service gives such a process, and prints its greatest
resident memory (VmHWM) and its seconds; then the whole job in one. The checkpoint always has all of its blocks;
`--blocks` says how many of them the parts measure, compress and evaluate (the job takes all), `--only` which ones run.
"""

import argparse
import dataclasses
import json
import math
import os
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast
from workers.compression.math.allocation import measured_plan
from workers.compression.spec.plans import Plan

from app.contract.recipe import Calibration, Evaluation, Recipe
from workers.child import SPARING, child_environment
from workers.compression.evaluation.fidelity import perplexity
from workers.compression.formats import writer_of
from workers.compression.math.sensitivity import Sensitivity, from_tensors, measure, to_tensors
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.spec.formats import MAIN
from workers.compression.steps.factor import compress
from workers.messages import Assignment
from workers.runner import walk
from workers.stages.part_files import read_part, write_part

KEY_HEADS = 4
CONFIG = LlamaConfig(
    hidden_size=2048,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=KEY_HEADS,
    intermediate_size=5632,
    vocab_size=32000,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
MODEL, SENSITIVITIES, PARTS, PACKAGE = "model", "sensitivities.safetensors", "parts", "package"


def main() -> None:
    options = arguments()
    if options.part is not None:
        run_part(options)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="memory-") as scratch:
        work = Path(scratch)
        size = write_checkpoint(work / MODEL)
        print(
            f"checkpoint: {size / 1e9:.2f} GB; {options.sequences} × {options.length} tokens, {options.blocks} blocks"
        )
        print("| part | peak MB | s |\n|---|---|---|", flush=True)
        for part in options.only or PARTS_OF_THE_ENGINE:
            found = in_a_process_of_its_own(part, work)
            print(f"| {part} | {found['peak'] / 1e6:.0f} | {found['seconds']:.0f} |", flush=True)


def in_a_process_of_its_own(part: str, work: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.memory", *sys.argv[1:], "--part", part, "--work", str(work)]
    environment = os.environ | child_environment(work, SPARING)
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def run_part(options: argparse.Namespace) -> None:
    started = time.monotonic()
    PARTS_OF_THE_ENGINE[options.part](options.work, options)
    print(json.dumps({"peak": peak(), "seconds": time.monotonic() - started}))


def peak() -> int:
    """Bytes of the greatest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def importing(work: Path, options: argparse.Namespace) -> None:
    """Nothing but the libraries."""


def measuring(work: Path, options: argparse.Namespace) -> None:
    model = opened(work / MODEL, options.blocks)
    found = {name: each for part in measure(model, tokens(options, options.sequences)) for name, each in part.items()}
    save_file(to_tensors(found), work / SENSITIVITIES)


def compressing(work: Path, options: argparse.Namespace) -> None:
    (work / PARTS).mkdir()
    model = opened(work / MODEL, options.blocks)
    sensitivities = from_tensors(load_file(work / SENSITIVITIES))
    plan = planned(work, sensitivities, options.ratio)
    for part in compress(model, plan, tokens(options, options.sequences), sensitivities=sensitivities):
        write_part(work / PARTS / f"{part.index:05d}", part)
        del part  # or it stays in memory beside the next one


def packaging(work: Path, options: argparse.Namespace) -> None:
    writer_of(MAIN).write(Overlay.open(work / MODEL, Parts(work / PARTS)), work / PACKAGE)


def evaluating(work: Path, options: argparse.Namespace) -> None:
    perplexity(opened(work / PACKAGE, options.blocks), tokens(options, options.windows))


def whole_job(work: Path, options: argparse.Namespace) -> None:
    """All stages in one process, as the worker's child walks them, told to stay below `--memory` bytes."""
    byte_tokenizer().save_pretrained(work / MODEL)
    texts = {f"local:{name}": write_text(work / f"{name}.txt", seed) for seed, name in enumerate(("seen", "unseen"))}
    seen, unseen = texts
    recipe = Recipe(
        model="local:model",
        target_ratio=options.ratio,
        calibration=Calibration(datasets=(seen,), sequences=options.sequences, length=options.length),
        evaluation=Evaluation(datasets=(unseen,), window=options.length, max_tokens=options.windows * options.length),
    )
    assignment = Assignment(
        job_id="job",
        attempt=1,
        recipe=recipe,
        model_path=work / MODEL,
        texts=texts,
        work_dir=work / "job",
        device="cpu",
        threads=None,
        memory_bytes=options.memory,
    )

    def told(report: BaseModel) -> None:
        print(f"{peak() / 1e6:.0f} MB", report.model_dump_json(exclude_none=True)[:600], file=sys.stderr, flush=True)

    assert walk(assignment, told)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_text(path: Path, seed: int) -> Path:
    """A million random letters, each a token."""
    generator = random.Random(seed)  # noqa: S311 - any letters do
    path.write_text("".join(generator.choices(string.ascii_letters, k=10**6)))
    return path


PARTS_OF_THE_ENGINE: Mapping[str, Callable[[Path, argparse.Namespace], None]] = MappingProxyType(
    {
        "import": importing,
        "measure": measuring,
        "compress": compressing,
        "package": packaging,
        "evaluate": evaluating,
        "job": whole_job,
    }
)


class Parts:
    """The written parts, each read anew whenever it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __iter__(self) -> Iterator[Any]:
        return map(read_part, sorted(self.directory.iterdir()))


def opened(directory: Path, blocks: int) -> StreamedModel:
    """The model, which believes to end after so many blocks."""
    model = StreamedModel.open(directory, dtype=torch.bfloat16)
    model.inventory = dataclasses.replace(model.inventory, blocks=min(blocks, model.inventory.blocks))
    return model


def planned(work: Path, sensitivities: Mapping[str, Sensitivity], ratio: float) -> Plan:
    """The plan of the whole model; blocks that were not measured count as one that was."""
    inventory = StreamedModel.open(work / MODEL, dtype=torch.bfloat16).inventory
    prefix = f"{inventory.block_prefix}."
    last = max(int(name.removeprefix(prefix).split(".")[0]) for name in sensitivities if name.startswith(prefix))

    def stand_in(name: str) -> Sensitivity:
        index, _, rest = name.removeprefix(prefix).partition(".")
        return sensitivities.get(name) or sensitivities[f"{prefix}{min(int(index), last)}.{rest}"]

    found = {site.name: stand_in(site.name) for site in inventory.sites}
    return measured_plan(inventory, "kronecker", ratio, {**sensitivities, **found})


def tokens(options: argparse.Namespace, sequences: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(CONFIG.vocab_size, (sequences, options.length), generator=generator)


def write_checkpoint(directory: Path) -> int:
    """Writes config and weights, a tensor at a time into one file, and returns the bytes of the weights."""
    directory.mkdir()
    CONFIG.save_pretrained(directory)
    shapes = dict(tensor_shapes())
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    generator = torch.Generator().manual_seed(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for shape in shapes.values():
            write_random(file, shape, generator)
    return end


def tensor_shapes() -> Iterator[tuple[str, list[int]]]:
    """The names and shapes of a Llama checkpoint."""
    hidden, inner, vocabulary = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.vocab_size
    keys = hidden // CONFIG.num_attention_heads * KEY_HEADS
    yield "model.embed_tokens.weight", [vocabulary, hidden]
    for index in range(CONFIG.num_hidden_layers):
        block = f"model.layers.{index}."
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{block}self_attn.{name}_proj.weight", [rows, hidden]
        yield f"{block}mlp.gate_proj.weight", [inner, hidden]
        yield f"{block}mlp.up_proj.weight", [inner, hidden]
        yield f"{block}mlp.down_proj.weight", [hidden, inner]
        yield f"{block}input_layernorm.weight", [hidden]
        yield f"{block}post_attention_layernorm.weight", [hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocabulary, hidden]


def write_random(file: BinaryIO, shape: list[int], generator: torch.Generator) -> None:
    tensor = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator).mul_(0.02)
    file.write(tensor.bfloat16().view(torch.uint8).numpy().data)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=32, help="of calibration")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--ratio", type=float, default=2.0, help="at 2 every matrix is factored, at 1.3 some stay")
    parser.add_argument("--windows", type=int, default=20, help="of evaluation")
    parser.add_argument("--blocks", type=int, default=CONFIG.num_hidden_layers)
    parser.add_argument("--memory", type=int, default=1_200_000_000, help="bytes that the whole job is told to spare")
    parser.add_argument("--only", nargs="+", choices=PARTS_OF_THE_ENGINE)
    parser.add_argument("--scratch", type=Path, help="a directory on a disk with 6 GB free; not in memory")
    parser.add_argument("--part", choices=PARTS_OF_THE_ENGINE, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

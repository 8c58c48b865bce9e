"""Tokens per second of a compressed model against its original, in turns so that both meet the same machine.

    python -m bench.speed ORIGINAL PACKAGE [PACKAGE ...]     # directories
    python -m bench.speed --shape 2048x16x5632               # a Llama of random weights, factored at 1.3

at batch 1: reading 512 tokens at once, and writing 32 one by one. Weights do not matter to speed, so the second form
needs no fit.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from workers.compression.spec.plans import to_dict, uniform_plan

from workers.compression import structures
from workers.compression.evaluation.speed import Speed, speed
from workers.compression.models.streamed import StreamedModel
from workers.compression.spec.inventory import inventory

ROUNDS = 7
RATIO = 1.3


def main() -> None:
    options = arguments()
    print("| model | dtype | prefill tokens/s | against the first | decode tokens/s | against the first |")
    print("|---|---|---|---|---|---|")
    for dtype in (getattr(torch, name) for name in options.dtypes):
        models = random_pair(options.shape, dtype) if options.shape else opened(options.directories, dtype)
        race(models, dtype)


def opened(directories: list[Path], dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    return {directory.name: StreamedModel.open(directory, dtype=dtype).whole() for directory in directories}


def random_pair(shape: str, dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    """A dense Llama hidden × blocks × intermediate, and the same with every matrix of a block pivoted at RATIO."""
    hidden, blocks, intermediate = map(int, shape.split("x"))
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=blocks,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    models = {name: LlamaForCausalLM(config).to(dtype).eval() for name in ("dense", f"factored at {RATIO}")}
    shapes = {name: tuple(tensor.shape) for name, tensor in models["dense"].named_parameters()}
    plan = uniform_plan(inventory(config.to_dict(), shapes), "kronecker", RATIO)
    factored = models[f"factored at {RATIO}"]
    structures.replace(factored, {name: to_dict(structure) for name, structure in plan.structures.items()})
    for parameter in factored.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return models


def race(models: Mapping[str, PreTrainedModel], dtype: torch.dtype) -> None:
    runs: dict[str, list[Speed]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            runs[name].append(speed(model, repeats=1))
    medians = {name: median(measured) for name, measured in runs.items()}
    first = next(iter(medians.values()))
    for name, found in medians.items():
        prefill = f"{found.prefill:.0f} | {found.prefill / first.prefill:.2f}"
        decode = f"{found.decode:.1f} | {found.decode / first.decode:.2f}"
        print(f"| {name} | {str(dtype).removeprefix('torch.')} | {prefill} | {decode} |", flush=True)


def median(runs: list[Speed]) -> Speed:
    prefill, decode = (statistics.median(getattr(run, name) for run in runs) for name in ("prefill", "decode"))
    return dataclasses.replace(runs[0], prefill=prefill, decode=decode)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--shape")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16", "float32"])
    options = parser.parse_args()
    if bool(options.directories) == bool(options.shape):
        parser.error("name directories, or a --shape")
    return options


if __name__ == "__main__":
    main()

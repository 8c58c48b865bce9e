"""Generate a continuation of a prompt with stock transformers, in a process that imports nothing of ours.

Usage: python demo/generate.py MODEL PROMPT, where MODEL is a directory, a .gguf file or a hub id.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 24


def main(model: str, prompt: str) -> None:
    """Print the model's greedy continuation of the prompt."""
    where, options = source(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
    network: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options)
    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        written = network.generate(**tokens, max_new_tokens=NEW_TOKENS, do_sample=False)
    sys.stdout.write(tokenizer.decode(written[0], skip_special_tokens=True))


def source(model: str) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `from_pretrained` that open the model."""
    path = Path(model)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    # Only a checkpoint of ours, which is a directory on this disk, may run code of its own.
    return model, {"trust_remote_code": path.is_dir()}


if __name__ == "__main__":
    main(*sys.argv[1:])

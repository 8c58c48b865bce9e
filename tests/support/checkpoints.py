"""Tiny checkpoints as files, written without torch: for tests of what is read from headers alone."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}
BLOCK = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, 8),
    "model.norm.weight": (8,),
    **{f"model.layers.{block}.{name}.weight": shape for block in range(2) for name, shape in BLOCK.items()},
}
PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values())
TOKENIZER = {"model": {"type": "BPE", "vocab": {f"token{number}": number for number in range(32)}, "merges": []}}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def safetensors_bytes(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> bytes:
    """A file of F32 tensors with random numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json_bytes(header)
    data = np.random.default_rng(seed).bytes(position)
    return struct.pack("<Q", len(encoded)) + encoded + data


def single_file() -> dict[str, bytes]:
    """A model in one file, with its companions."""
    return {
        "config.json": json_bytes(CONFIG),
        "model.safetensors": safetensors_bytes(SHAPES),
        "tokenizer.json": json_bytes(TOKENIZER),
        "LICENSE": b"Apache-2.0",
    }


def sharded() -> dict[str, bytes]:
    """Return the files of the same model, its weights in two files with an index."""
    names = list(SHAPES)
    halves = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    return {
        "config.json": json_bytes(CONFIG),
        "model.safetensors.index.json": json_bytes(index),
        "tokenizer.json": json_bytes(TOKENIZER),
        **{file: safetensors_bytes({name: SHAPES[name] for name in half}) for file, half in halves.items()},
    }


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    head: bool = False,
    tokenizer: str = "gpt2",
    split: str | None = None,
    scaling: gguf.RopeScalingType | None = None,
    divisors: Sequence[float] = (),
    theta: float = 10_000.0,
    settings: Mapping[str, float] | None = None,
) -> Path:
    """Write the same model as a GGUF file; `head`: with an output head of its own; `settings`: more metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
    for key, value in (settings or {}).items():
        writer.add_uint32(key, value) if isinstance(value, int) else writer.add_float32(key, value)
    writer.add_tokenizer_model(tokenizer)
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list([*(f"token{number}" for number in range(29)), "t", "h", "th"])
    writer.add_token_merges(["t h"])
    tensors = {"token_embd": (32, 8), "output_norm": (8,)} | ({"output": (32, 8)} if head else {})
    tensors |= {f"blk.{block}.{GGUF_NAMES[name]}": shape for block in range(2) for name, shape in BLOCK.items()}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    if divisors:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""The header of a GGUF file, as the config and the tensor shapes that transformers makes of it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package builds an object per token of the
vocabulary, which takes seconds; this reads metadata and shapes only, and never the data.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.sources.gguf_errors import MalformedGguf, UnsupportedGguf
from app.sources.gguf_rotary import DEFAULT_THETA, llama3_parameters, rope_parameters
from modelpress.spec.architectures import ARCHITECTURES, GgufNames
from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.gguf_splits import KNOWN

MAGIC = b"GGUF"
ALIGNMENT = 32
VERSIONS = (2, 3)
LARGEST_HEADER = 128 * 2**20
MOST_ENTRIES = 100_000
MOST_STRINGS = 2_000_000
"""Of all arrays together: a vocabulary of 300,000 tokens with as many merges has 600,000."""
LONGEST_STRING = 2**20
LONGEST_NAME = 256
MOST_DIMENSIONS = 4

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING = 8
ARRAY = 9
BLOCKS = {
    0: (1, 4), 1: (1, 2), 30: (1, 2), 28: (1, 8),
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 20: (32, 18),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 23: (256, 136),
}  # fmt: skip
"""Type of a tensor's numbers -> how many of them a block holds, and the bytes of a block."""

CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
DIVISORS = "rope_freqs.weight"
LARGEST_DIVISORS = 4096
F32 = 0

ROTARY_KEYS = frozenset(
    {
        "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.attn_factor", "rope.scaling.finetuned", "rope.scale_linear",
    }
)  # fmt: skip
OTHER_KEYS = frozenset({"vocab_size", "attention.value_length", "tensor_data_layout", "attention.causal"})
TOKENIZERS = ("gpt2", "llama")
"""What `tokenizer.ggml.model` may say: the kinds that transformers builds for ARCHITECTURES."""


@dataclass(frozen=True)
class StoredTensor:
    shape: tuple[int, ...]
    """Outermost dimension first, as torch counts."""
    kind: int
    start: int
    end: int  # bytes, counted from the beginning of the data


@dataclass(frozen=True)
class Gguf:
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    split: str | None = None
    """The file's name for the way in which its vocabulary splits text."""


def read_gguf(path: Path) -> Gguf:
    """Return the config in transformers' terms, and {transformers name: shape} of every weight.

    Raises:
        MalformedGguf: the file is not a sound GGUF file.
        UnsupportedGguf: it is one, but of an architecture that has no GGUF names in the registry.
    """
    with path.open("rb") as file:
        metadata, stored = Reader(file).header()
        data_start = aligned(file.tell(), metadata.get("general.alignment", ALIGNMENT))
    if path.stat().st_size < data_start + max((tensor.end for tensor in stored.values()), default=0):
        raise MalformedGguf("The file is cut off: it is shorter than its header says.")
    architecture, names = architecture_of(metadata)
    config = config_of(metadata, architecture, names)
    if DIVISORS in stored:
        divisors = read_divisors(path, data_start, stored[DIVISORS])
        if (scaling := llama3_parameters(divisors, config.get("rope_theta", DEFAULT_THETA))) is not None:
            config["rope_scaling"] = scaling
    shapes = {
        transformers_name(name, architecture, names): tensor.shape
        for name, tensor in stored.items()
        if name != DIVISORS
    }
    config["tie_word_embeddings"] = "lm_head.weight" not in shapes
    return Gguf(config, shapes, metadata.get("tokenizer.ggml.pre"))


def read_divisors(path: Path, data_start: int, tensor: StoredTensor) -> tuple[float, ...]:
    """Return the numbers of the tensor that divides rotary frequencies."""
    count = math.prod(tensor.shape)
    if tensor.kind != F32 or count > LARGEST_DIVISORS:
        raise UnsupportedGguf(f"The file holds '{DIVISORS}' in a form that is not read.")
    with path.open("rb") as file:
        file.seek(data_start + tensor.start)
        return struct.unpack(f"<{count}f", file.read(4 * count))


class Reader:
    """Reads one value after the other; a length that the file cannot hold is refused before memory is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.read_bytes = 0
        self.strings = 0

    def header(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        """Return the metadata, with an array's length in its place, and every tensor."""
        if self.take(len(MAGIC)) != MAGIC:
            raise MalformedGguf("The file does not begin like a GGUF file.")
        if (version := self.scalar("<I")) not in VERSIONS:
            raise MalformedGguf(f"The file has the GGUF version {version}; versions 2 and 3 are read.")
        count, entries = self.count(MOST_ENTRIES), self.count(MOST_ENTRIES)
        metadata = dict(self.entry() for _ in range(entries))
        tensors = dict(self.tensor() for _ in range(count))
        if len(tensors) != count:
            raise MalformedGguf("The file names one tensor twice.")
        return metadata, tensors

    def entry(self) -> tuple[str, Any]:
        return self.name(), self.value(self.scalar("<I"))

    def tensor(self) -> tuple[str, StoredTensor]:
        name = self.name()
        dimensions = self.scalar("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise MalformedGguf(f"The file gives '{name}' {dimensions} dimensions.")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        if not 0 < math.prod(shape) < 2**48:
            raise MalformedGguf(f"The file gives '{name}' an impossible shape.")
        kind, start = self.scalar("<I"), self.scalar("<Q")
        if kind not in BLOCKS:
            raise UnsupportedGguf(f"The file stores '{name}' in the GGML type {kind}, which is not read.")
        numbers, block_bytes = BLOCKS[kind]
        return name, StoredTensor(shape[::-1], kind, start, start + math.prod(shape) // numbers * block_bytes)

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.skip_array()
        raise MalformedGguf(f"The file has a value of the unknown type {kind}.")

    def skip_array(self) -> int:
        """Return the length of an array, and pass over its elements."""
        kind, length = self.scalar("<I"), self.count(LARGEST_HEADER)
        if kind in SCALARS:
            self.skip(length * struct.calcsize(SCALARS[kind]))
        elif kind == STRING:
            self.strings += length
            if self.strings > MOST_STRINGS:
                raise MalformedGguf(f"The file lists more than {MOST_STRINGS} strings.")
            for _ in range(length):
                self.skip(self.count(LONGEST_STRING))
        else:
            raise MalformedGguf(f"The file has an array of the unknown type {kind}.")
        return length

    def name(self) -> str:
        name = self.string()
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise MalformedGguf(f"The file has the name {name[:80]!r}, which no model has.")
        return name

    def string(self) -> str:
        return self.take(self.count(LONGEST_STRING)).decode("utf-8", errors="replace")

    def count(self, most: int) -> int:
        value: int = self.scalar("<Q")
        if value > most:
            raise MalformedGguf(f"The file claims a count of {value}.")
        return value

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def skip(self, count: int) -> None:
        self.advance(count)
        self.file.seek(count, 1)

    def take(self, count: int) -> bytes:
        self.advance(count)
        content = self.file.read(count)
        if len(content) < count:
            raise MalformedGguf("The file ends inside its header.")
        return content

    def advance(self, count: int) -> None:
        self.read_bytes += count
        if self.read_bytes > LARGEST_HEADER:
            raise MalformedGguf(f"The file has a header of more than {LARGEST_HEADER} bytes.")


def aligned(position: int, alignment: object) -> int:
    if type(alignment) is not int or alignment < 1:
        raise MalformedGguf("The file gives an impossible alignment.")
    return -(-position // alignment) * alignment


def architecture_of(metadata: Mapping[str, Any]) -> tuple[Architecture, GgufNames]:
    """Return the architecture that the file names. Raises UnsupportedGguf."""
    known = {known.gguf.architecture: (known, known.gguf) for known in ARCHITECTURES.values() if known.gguf is not None}
    stated = metadata.get("general.architecture")
    if stated not in known:
        raise UnsupportedGguf(
            f"The file is of the architecture {stated!r:.100}; of GGUF files these are read: {', '.join(known)}."
        )
    return known[stated]


def config_of(metadata: Mapping[str, Any], architecture: Architecture, names: GgufNames) -> dict[str, Any]:
    """Return the config in transformers' terms. Raises UnsupportedGguf; MalformedGguf where a size is missing."""
    if f"{names.architecture}.expert_count" in metadata:
        raise UnsupportedGguf("The file holds a mixture of experts, which is not read.")
    if (tokenizer := metadata.get("tokenizer.ggml.model")) not in TOKENIZERS:
        raise UnsupportedGguf(
            f"The file has a tokenizer of the kind {tokenizer!r:.100}; in GGUF files these are read: "
            f"{', '.join(TOKENIZERS)}"
        )
    if tokenizer == "gpt2" and (split := metadata.get("tokenizer.ggml.pre", "default")) not in KNOWN:
        raise UnsupportedGguf(
            f"The file's vocabulary splits text in the way {split!r:.100}, which cannot be carried over."
        )
    prefix = f"{names.architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    if unknown := sorted(own.keys() - CONFIG_KEYS.keys() - ROTARY_KEYS - OTHER_KEYS):
        raise UnsupportedGguf(f"The file states '{prefix}{unknown[0]}', which may change what the model computes.")
    config = {name: own[key] for key, name in CONFIG_KEYS.items() if key in own}
    if missing := [name for name in NEEDED if type(config.get(name)) is not int]:
        raise MalformedGguf(f"The file does not say its {missing[0]}.")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["model_type"] = architecture.model_type
    check_heads(own, config)
    if (scaling := rope_parameters(own, config)) is not None:
        config["rope_scaling"] = scaling
    config["vocab_size"] = own.get("vocab_size", metadata.get("tokenizer.ggml.tokens"))
    return config


def check_heads(own: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UnsupportedGguf for heads that rotate in part, or whose values are of another size than their keys."""
    size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, size) != size:
            raise UnsupportedGguf(
                f"The file states '{key}' as {own[key]!r:.100}, but its attention heads are of {size}."
            )


def transformers_name(name: str, architecture: Architecture, names: GgufNames) -> str:
    """Return the transformers name of a tensor: `blk.3.ffn_up.weight` is `model.layers.3.mlp.up_proj.weight`.

    Raises UnsupportedGguf.
    """
    match name.split("."):
        case [module, "weight"] if module in names.outside:
            return f"{names.outside[module]}.weight"
        case ["blk", block, module, ("weight" | "bias") as parameter] if block.isdecimal() and module in names.block:
            return f"{architecture.blocks}.{block}.{names.block[module]}.{parameter}"
    raise UnsupportedGguf(f"The file holds a tensor '{name}', which a model of its architecture does not have.")

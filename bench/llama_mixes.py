"""GGUF files as llama.cpp's own quantiser makes them, for comparison: its mixes of types, with an importance matrix.

    importance = measured_importance(model, ids)
    write_mix(source, destination, "Q4_K_M", importance)        # `source` is a GGUF file of 16 bits

The wheel of llama.cpp exports the encoders of its types, but not the function that chooses a type for each tensor. So
its rules are stated here, for models in the layout of Llama without experts (llama-quant.cpp, October 2026).
"""

import ctypes
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from workers.compression.engines.llama_cpp import library
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.two_streams import StoredStates, TwoStreams, embedded

Importance = Mapping[str, NDArray[np.float32]]
"""The mean square of each input of a matrix, by its name in the file."""

DEFAULTS: Mapping[str, Type] = {
    "Q8_0": Type.Q8_0, "Q6_K": Type.Q6_K, "Q5_K_M": Type.Q5_K, "Q4_K_M": Type.Q4_K, "Q4_0": Type.Q4_0,
    "IQ4_NL": Type.IQ4_NL, "IQ4_XS": Type.IQ4_XS, "Q3_K_M": Type.Q3_K, "IQ3_M": Type.IQ3_S, "Q2_K": Type.Q2_K,
    "IQ2_M": Type.IQ2_S,
}  # fmt: skip
"""The type of most matrices of a mix."""

FALLBACKS: Mapping[Type, Type] = {
    Type.IQ2_S: Type.IQ4_NL, Type.IQ3_S: Type.IQ4_NL, Type.IQ4_XS: Type.IQ4_NL, Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
}  # fmt: skip
"""What takes the place of a type whose blocks do not fit the rows."""

_SITES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MATRICES = tuple(_SITES.values())


@dataclass(frozen=True)
class Shape:
    """The sizes that the rules depend on: the number of blocks, and how many query heads share a key/value head."""

    blocks: int
    sharing: int


@torch.no_grad()
def measured_importance(model: StreamedModel, ids: Tensor) -> Importance:
    """Return the importance of the inputs of each matrix in the blocks, on token ids [N, T].

    llama.cpp measures none for the embedding, nor, unless told to, for the output.
    """
    found: dict[str, NDArray[np.float32]] = {}
    edited = EditedModel(model)
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        states = StoredStates(Path(scratch) / "states", embedded(edited, ids), edited.device)
        streams = TwoStreams(edited, None, states, Path(scratch), alike=False)
        for index in edited.kept:
            with edited.block(index) as block:
                moments = streams.observe(block, index, list(_SITES))
                for site, name in _SITES.items():
                    seen = moments.take(site)
                    found[f"blk.{index}.{name}.weight"] = (seen.inputs.diagonal() / seen.tokens).float().cpu().numpy()
                streams.advance_compressed(block, index, changed=False)
    return found


def write_mix(source: Path, destination: Path, mix: str, importance: Importance) -> None:
    """Write the model of a GGUF file of 16 bits in one of llama.cpp's mixes. Raises KeyError for an unknown mix."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    shape = Shape(
        reader.fields[f"{architecture}.block_count"].contents(),
        reader.fields[f"{architecture}.attention.head_count"].contents()
        // reader.fields[f"{architecture}.attention.head_count_kv"].contents(),
    )
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    writer = gguf.GGUFWriter(destination, architecture)
    _copy_fields(reader, writer)
    for tensor in reader.tensors:
        kind = type_of(tensor.name, int(tensor.shape[0]), mix, shape, tied=tied)
        if kind is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, encode(weights, kind, importance.get(tensor.name)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encode(weights: NDArray[np.float32], kind: Type, importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """Return a matrix [rows, columns] in one of ggml's types, as ggml's own encoder rounds it: [rows, bytes]."""
    rows, columns = weights.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(weights, np.float32)
    encoded = np.empty((rows, columns // block * size), np.uint8)
    weighed = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = library().ggml_quantize_chunk(
        int(kind),
        source.ctypes.data_as(ctypes.c_void_p),
        encoded.ctypes.data_as(ctypes.c_void_p),
        0,
        rows,
        columns,
        None if weighed is None else weighed.ctypes.data_as(ctypes.c_void_p),
    )
    assert written == encoded.nbytes
    return encoded


def type_of(name: str, columns: int, mix: str, shape: Shape, *, tied: bool) -> Type | None:
    """Return the type of a tensor in a mix; None for norms and biases, which are left as they are."""
    module, _, parameter = name.rpartition(".")
    if parameter != "weight" or module.endswith("_norm"):
        return None
    if module == "output" or (tied and module == "token_embd"):
        return _fitting(_output(mix, columns), columns)
    if module == "token_embd":
        return _fitting(Type.IQ3_S if mix == "IQ2_M" else DEFAULTS[mix], columns)
    _, block, matrix = module.split(".")
    assert matrix in _MATRICES, name
    return _fitting(_in_block(matrix, int(block), mix, shape), columns)


def _output(mix: str, columns: int) -> Type:
    block, _ = gguf.GGML_QUANT_SIZES[DEFAULTS[mix]]
    if columns % block or mix == "Q8_0":
        return Type.Q8_0
    return Type.Q5_K if mix == "IQ2_M" else Type.Q6_K


def _in_block(matrix: str, block: int, mix: str, shape: Shape) -> Type:
    """Return the type of a matrix of a block before it is fitted to the rows."""
    eighth = shape.blocks // 8
    more_bits = block < eighth or block >= 7 * shape.blocks // 8 or (block - eighth) % 3 == 2
    default, shared = DEFAULTS[mix], shape.sharing >= 4
    match matrix, mix:
        case "attn_v", "IQ2_M":
            return Type.Q4_K if shared else Type.IQ3_S
        case "attn_v", "Q2_K":
            return Type.Q4_K if shared else Type.Q3_K
        case "attn_v", "Q3_K_M":
            return Type.Q5_K if block < 2 else Type.Q4_K
        case "attn_v", "IQ4_NL" | "IQ4_XS":
            return Type.Q5_K if shared else default
        case (("attn_v" | "ffn_down"), ("Q4_K_M" | "Q5_K_M")):
            return Type.Q6_K if more_bits else default
        case "ffn_down", "IQ2_M":
            return Type.IQ3_S if block < eighth else default
        case "ffn_down", "Q2_K":
            return Type.Q3_K
        case "ffn_down", "Q3_K_M":
            return Type.Q5_K if block < shape.blocks // 16 else Type.Q4_K
        case "ffn_down", "IQ3_M":
            return Type.Q4_K if block < eighth else default
        case "ffn_down", "Q4_0":
            return Type.Q4_1 if block < eighth else default
        case "attn_output", "IQ2_M":
            return Type.IQ3_S
        case "attn_output", "Q2_K":
            return Type.Q3_K
        case ("attn_output", "Q3_K_M") | (("attn_output" | "attn_v"), "IQ3_M"):
            return Type.Q4_K
    return default


def _fitting(kind: Type, columns: int) -> Type:
    """Return the type, or the one that llama.cpp takes where rows are no whole number of its blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return FALLBACKS[kind] if columns % block else kind


def _copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in _fields(reader):
        kind = field.types[0]
        of = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=of)


def _fields(reader: gguf.GGUFReader) -> Iterator[gguf.ReaderField]:
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            yield field

"""Which tensors a GGUF file has, and their bytes, read one at a time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map, quant_shape_to_byte_shape
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import PreTrainedConfig

from modelpress.spec.gguf import GgufForm, Rows
from workers.compression.encoded import Encoded
from workers.compression.formats.gguf.heads import Heads
from workers.compression.formats.gguf.packing import PLAIN, TYPES, Bytes, floats, pack
from workers.compression.formats.gguf.rotation import divisors
from workers.compression.overlay import Overlay

_ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
_SUFFIXES = (".weight", ".bias")
_ALWAYS_F32 = ("position_embd.weight",)


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: its name there.
        type: ggml's type of its numbers.
        shape: its shape, outermost dimension first.
        read: returns its bytes, with the last dimension in bytes.
        plain_bytes: bytes of its numbers in the original.
    """

    name: str
    type: Type
    shape: tuple[int, ...]
    read: Callable[[], Bytes]
    plain_bytes: int = 0

    @property
    def in_code(self) -> bool:
        """Return whether the numbers of the tensor are stored in a code."""
        return self.type in TYPES.values()

    @property
    def bytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(quant_shape_to_byte_shape(self.shape, self.type))

    @property
    def numbers(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def file_tensors(overlay: Overlay, form: GgufForm, config: PreTrainedConfig) -> Iterator[FileTensor]:
    """Yield the tensors of the file in the order of the model.

    Raises ValueError for a tensor that llama.cpp has no name for, or a code that it does not have.
    """
    for name, values in divisors(config).items():
        yield FileTensor(f"{name}.weight", Type.F32, tuple(values.shape), partial(floats, values))
    names = get_tensor_name_map(_ARCHITECTURES[form.architecture], config.num_hidden_layers)
    heads = Heads.of(config)
    for name in overlay.tensor_names():
        yield _file_tensor(overlay, name, _file_name(overlay, name, names, form), form, heads)


def _file_name(overlay: Overlay, name: str, names: TensorNameMap, form: GgufForm) -> str:
    """Return the name in the file. Raises ValueError if there is none."""
    written = overlay.written_name(name)
    for candidate in (written, written.removeprefix(f"{overlay.architecture.base}.")):
        found: str | None = names.get_name(candidate, try_suffixes=_SUFFIXES)
        if found is not None:
            return found
    raise ValueError(f"llama.cpp has no tensor for {written} in models of its architecture {form.architecture!r}")


def _file_tensor(overlay: Overlay, name: str, file_name: str, form: GgufForm, heads: Heads) -> FileTensor:
    shape = overlay.shapes[name]
    if overlay.is_transposed(name):
        shape = shape[::-1]
    order = _row_order(form, name, shape[0], heads)
    if (code := overlay.codes.get(name)) is not None:
        if code not in TYPES:
            raise ValueError(f"GGUF files have no code {code!r}, in which {name} is stored")
        return FileTensor(file_name, TYPES[code], shape, partial(_packed, overlay, name, order))
    stored = overlay.original_dtype(name)
    single = len(shape) == 1 or file_name.endswith("_norm.weight") or file_name in _ALWAYS_F32
    dtype = torch.float32 if single or stored not in PLAIN else stored
    added = form.shifted_norms and name.endswith("norm.weight")
    read = partial(_plain, overlay, name, order, dtype, added)
    return FileTensor(file_name, PLAIN[dtype], shape, read, math.prod(shape) * stored.itemsize)


def _plain(overlay: Overlay, name: str, order: Tensor | None, dtype: torch.dtype, added: bool) -> Bytes:
    """Return the bytes of a tensor that is stored as plain numbers; `added`: with 1 added."""
    tensor = overlay.tensor(name)
    if overlay.is_transposed(name):
        tensor = tensor.T
    tensor = tensor.to(dtype)
    return floats((tensor + 1 if added else tensor) if order is None else tensor[order])


def _packed(overlay: Overlay, name: str, order: Tensor | None) -> Bytes:
    encoded = overlay.encoding(name)
    if encoded is None:
        raise RuntimeError(f"the parts changed while they were written: {name} was stored in a code")
    return pack(encoded if order is None else _reordered(encoded, order))


def _reordered(encoded: Encoded, order: Tensor) -> Encoded:
    scales = None if encoded.scales is None else encoded.scales[order]
    return Encoded(encoded.code, encoded.levels[order], encoded.units[order], scales)


def _row_order(form: GgufForm, name: str, rows: int, heads: Heads) -> Tensor | None:
    """Return the number in transformers of each row of the file's tensor; None where the order is the same."""
    module = name.rpartition(".")[0]
    if form.rows is Rows.PAIRED and module.endswith((".q_proj", ".k_proj")):
        return torch.arange(rows).view(-1, 2, heads.size // 2).transpose(1, 2).reshape(-1)
    if form.rows is Rows.SPLIT and module.endswith((".query_key_value", ".attn.c_attn")):
        grouped = torch.arange(rows).view(heads.key_values, -1, heads.size)
        parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return torch.cat([part.reshape(-1) for part in parts])
    return None

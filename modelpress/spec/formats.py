"""The formats in which a compressed model can be written, with what opens each and which models it refuses.

`REGISTERED` is the only list: the recipe, the API's schema, the worker and the model card read it. To add a format, add
an entry here and a file beside `workers.compression.formats.dense` with the writer that the entry names. Entry and
writer are apart because the service checks recipes by the entries and must never import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelpress.spec.codes import CODES
from modelpress.spec.gguf import gguf_codes, refuse_gguf
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods.base import Leaves
from modelpress.spec.packing import PACKED, storable

MAIN = "safetensors"
"""The format that every package has at its top level; each other format has a directory of its name."""

TOLERANCE = 1e-3
"""The largest difference between the logits of a written checkpoint and the recorded ones, as a fraction of the largest
logit."""

DENSE_TOLERANCE = 0.05
"""The tolerance for a dense export, whose products of factors are rounded to the dtype of the weights. A wrong matrix
would change logits by their own size."""

GGUF_TOLERANCE = 0.05
"""The largest mean divergence, in nats, of the distributions that llama.cpp computes from the recorded ones. It rounds
the inputs of every matrix in a code to 8 bits, which alone makes 0.005 to 0.013 for SmolLM2-135M. A wrong matrix would
make more than 0.1."""


@dataclass(frozen=True)
class Format:
    """One way to write a compressed model.

    Attributes:
        name: the name in a recipe, and of the directory.
        title: a few words, for people.
        description: for people; completes "This directory holds …".
        opened_by: the engines that open it, for people.
        writer: import path 'module:class' of a `workers.compression.formats.writer.Writer`.
        refuses: called with the original's inventory and what the method leaves; returns why such a model cannot be
            written in this format, or None if it can.
        codes: called with the inventory of the model as structure has left it and one of its matrices; returns the
            names of the codes of `spec.codes` in which the format can store the matrix. None where the format holds no
            rounded weights at all.
        joins: whether its engines join the matrices of a block that read the same input, which then need one code.
        tolerance: largest allowed difference of a logit from the recorded one, as a fraction of the largest logit.
        library: the optional package that writes it.
        extra: the extra of modelpress that installs `library`.
    """

    name: str
    title: str
    description: str
    opened_by: tuple[str, ...]
    writer: str
    refuses: Callable[[Inventory, Leaves], str | None] = lambda inventory, leaves: None
    codes: Callable[[Inventory, Site], tuple[str, ...]] | None = None
    joins: bool = False
    tolerance: float = TOLERANCE
    library: str | None = None
    extra: str | None = None


def _refuse_plain(inventory: Inventory, leaves: Leaves) -> str | None:
    """Return why models without factored layers cannot be written, or None for others."""
    return (
        "the method leaves no factored layers, so the main checkpoint is dense already"
        if leaves is Leaves.PLAIN
        else None
    )


def _packed_codes(inventory: Inventory, site: Site) -> tuple[str, ...]:
    """Return the codes in which compressed-tensors can store a matrix: none where it is stored transposed."""
    return tuple(name for name in PACKED if storable(CODES[name], site) is None)


SAFETENSORS = Format(
    name=MAIN,
    title="the compressed checkpoint",
    description="the compressed model, with ordinary or factored layers. Matrices that the plan rounds are integers of "
    "8 or 4 bits in the format of compressed-tensors",
    opened_by=(
        "transformers, with trust_remote_code=True if layers are factored or the embedding is rounded, and "
        "compressed-tensors installed if matrices are rounded",
        "vLLM, unless the embedding is factored, or rounded and shared with the output head; on a CPU only with 4 bits",
    ),
    writer="workers.compression.formats.safetensors:Safetensors",
    codes=_packed_codes,
    joins=True,
)
DENSE = Format(
    name="dense",
    title="dense export",
    description="the same model with its factors multiplied out, for engines that run no code from a checkpoint. It "
    "computes what the main checkpoint computes, up to rounding, and is **not smaller** than any model of its shape",
    opened_by=("any engine that opens the original's architecture",),
    writer="workers.compression.formats.dense:Dense",
    refuses=_refuse_plain,
    tolerance=DENSE_TOLERANCE,
)

GGUF = Format(
    name="gguf",
    title="GGUF file",
    description="one file `model.gguf` with the model, its tokenizer and its chat template",
    opened_by=("llama.cpp", "what is built on it, such as Ollama and LM Studio (not tried)"),
    writer="workers.compression.formats.gguf:Gguf",
    refuses=refuse_gguf,
    codes=gguf_codes,
    tolerance=GGUF_TOLERANCE,
    library="xllamacpp",
    extra="gguf",
)

REGISTERED: tuple[Format, ...] = (
    SAFETENSORS,
    DENSE,
    GGUF,
)
"""Every format, in the order in which people see them."""

FORMATS: Mapping[str, Format] = MappingProxyType({form.name: form for form in REGISTERED})
"""Every format by name."""

"""The formats that a result can be written in: what each is, what opens it, and for which models it is not. Torch-free.

`REGISTERED` is the only list: the recipe, the API's schema, the worker and the model card read it. Adding a format is
one entry here, and one file beside `workers.compression.formats.dense` with the writer that the entry names. The two
are apart because the service, which checks a recipe by what stands here, must never import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.compression.spec.inventory import Inventory
from workers.compression.spec.methods.base import Leaves
from workers.compression.spec.quantisation import GROUP_SIZE, NotQuantisable, grids

MAIN = "safetensors"
"""Every package has this one, at its top; each other format lies in a directory of its name."""

TOLERANCE = 1e-3
"""How far a logit that a written checkpoint computes may lie from the recorded one, as part of the largest logit."""

DENSE_TOLERANCE = 0.05
"""The same for a dense export: each product of factors is rounded to the dtype of the weights. A wrong matrix is off by
the size of the logits."""


@dataclass(frozen=True)
class Format:
    """One way to write a compressed model.

    `writer` is the import path 'module:class' of a `workers.compression.formats.writer.Writer`. `refuses` returns why
    what a method leaves of a model cannot be written so, or None where it can; it is given the model's inventory.
    `description` completes "It holds …" and `opened_by` lists engines, both for people. `rounds`: its numbers differ
    from the main checkpoint's, so it is measured on its own. `tolerance`: how far a logit may lie from the recorded
    one, as part of the largest. `library` is the optional package that writes it, installed by modelpress[`extra`].
    """

    name: str
    title: str
    description: str
    opened_by: tuple[str, ...]
    writer: str
    refuses: Callable[[Inventory, Leaves], str | None] = lambda inventory, leaves: None
    rounds: bool = False
    tolerance: float = TOLERANCE
    library: str | None = None
    extra: str | None = None


def _refuse_plain(inventory: Inventory, leaves: Leaves) -> str | None:
    return "an ordinary checkpoint is dense as it is" if leaves is Leaves.PLAIN else None


def _refuse_rounding(scheme: str) -> Callable[[Inventory, Leaves], str | None]:
    def refuses(inventory: Inventory, leaves: Leaves) -> str | None:
        if leaves is not Leaves.PLAIN:
            return (
                "factored layers are not rounded to integers; choose a method that always leaves ordinary matrices, "
                "such as 'fusion' or 'width'"
            )
        try:
            grids(inventory, scheme)
        except NotQuantisable as error:
            return str(error)
        return None

    return refuses


def _integers(name: str, title: str, description: str) -> Format:
    return Format(
        name=name,
        title=title,
        description=f"{description}, in the format of compressed-tensors. Embedding, output head, norms and biases are "
        "those of the main checkpoint",
        opened_by=("transformers where compressed-tensors is installed", "vLLM (not tried)"),
        writer=f"workers.compression.formats.compressed_tensors:{name.capitalize()}",
        refuses=_refuse_rounding(name),
        rounds=True,
        library="compressed_tensors",
        extra="quantisation",
    )


SAFETENSORS = Format(
    name=MAIN,
    title="the compressed checkpoint",
    description="the compressed model as it is, plain or factored",
    opened_by=("transformers, with trust_remote_code=True where layers are factored",),
    writer="workers.compression.formats.safetensors:Safetensors",
)
DENSE = Format(
    name="dense",
    title="dense export",
    description="the same model with its factors multiplied out, for engines that run no code of a checkpoint. It "
    "computes what the main checkpoint computes, up to rounding, and is **not smaller** than any model of its shape",
    opened_by=("whatever opens the original's architecture",),
    writer="workers.compression.formats.dense:Dense",
    refuses=_refuse_plain,
    tolerance=DENSE_TOLERANCE,
)
INT8 = _integers("int8", "8-bit integers", "the matrices of the blocks rounded to 8 bits with one scale for each row")
INT4 = _integers(
    "int4",
    "4-bit integers",
    f"the matrices of the blocks rounded to 4 bits with one scale for each {GROUP_SIZE} numbers of a row, those of "
    "another width to 8 bits",
)

REGISTERED: tuple[Format, ...] = (
    SAFETENSORS,
    DENSE,
    INT8,
    INT4,
)
"""In the order in which they are listed to people."""

FORMATS: Mapping[str, Format] = MappingProxyType({form.name: form for form in REGISTERED})

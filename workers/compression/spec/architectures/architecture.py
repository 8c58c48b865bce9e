"""The facts about an architecture that the compression needs, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Architecture", "Attention", "GgufNames", "HeadMatrices", "Mlp"]


@dataclass(frozen=True)
class Mlp:
    """The linear layers of a block's MLP, by their names inside the block.

    `entering` are the layers whose output features are the hidden units: gate and up projection, or the first layer of
    a plain MLP. `stacked` says how many such matrices one of them holds below one another. `leaving` is the layer whose
    input features are the hidden units. `norm`, where there is one, is the norm between `leaving` and the residual.
    """

    entering: tuple[str, ...]
    leaving: str
    stacked: int = 1
    norm: str | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """All linear layers of the MLP."""
        return (*self.entering, self.leaving)

    def sets_order(self, site: str) -> bool:
        """Return whether the hidden units may be permuted to suit the layer `site`: it is the first that enters."""
        return self.stacked == 1 and site.endswith(f".{self.entering[0]}")


@dataclass(frozen=True)
class HeadMatrices:
    """The three projections whose output features are those of the attention heads, by their names inside the block.

    `divides_width`: the config class refuses a hidden size that is no multiple of the number of query heads.
    """

    queries: str = "self_attn.q_proj"
    keys: str = "self_attn.k_proj"
    values: str = "self_attn.v_proj"
    divides_width: bool = False


@dataclass(frozen=True)
class Attention:
    """The parts of a block's attention, by their names inside the block.

    `leaving` is the output projection: its input features are those of all query heads. `norm`, where there is one, is
    the norm between `leaving` and the residual. `heads` is None where the config has no field for the size of a head,
    so that heads cannot be removed.
    """

    leaving: str = "self_attn.o_proj"
    norm: str | None = None
    heads: HeadMatrices | None = None


@dataclass(frozen=True)
class GgufNames:
    """The names that GGUF files use for an architecture and its modules.

    `architecture` is the value of `general.architecture`. `outside` and `block` map GGUF's name of a module to
    transformers': the full name outside the blocks, and the name inside a block for GGUF's `blk.N.`.
    """

    architecture: str
    outside: Mapping[str, str]
    block: Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """The names of a model type's parts in the transformers model, and the defaults of its config.

    `base` is the attribute that holds the base model; some checkpoints leave it out of their tensor names. `blocks` and
    `embedding` are full module names. `tied` is the default of `tie_word_embeddings` in the type's config. `layout` is
    how linear layers store their matrix: "linear" as [out, in], "conv1d" as [in, out]. `old_head` is the output head's
    name in older checkpoints. `blocks_field` and `width_field` are the config's names for the number of blocks and for
    the number of an MLP's hidden units. `gguf` is None where GGUF files of the architecture cannot be opened.
    """

    model_type: str
    base: str
    blocks: str
    embedding: str
    tied: bool
    mlp: Mlp
    attention: Attention
    layout: Literal["linear", "conv1d"] = "linear"
    head: str = "lm_head"
    old_head: str | None = None
    blocks_field: str = "num_hidden_layers"
    width_field: str = "intermediate_size"
    gguf: GgufNames | None = None

    def canonical(self, name: str) -> str:
        """Return the name that a stored tensor has in the transformers model with a language-modelling head."""
        if self.old_head and name.startswith(f"{self.old_head}."):
            return self.head + name.removeprefix(self.old_head)
        if name.startswith((f"{self.base}.", f"{self.head}.")):
            return name
        return f"{self.base}.{name}"

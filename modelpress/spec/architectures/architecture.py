"""The facts about an architecture that the compression needs, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Architecture", "Attention", "Experts", "GgufNames", "HeadMatrices", "Mlp"]


@dataclass(frozen=True)
class Mlp:
    """The linear layers of a block's MLP, by their names inside the block.

    Attributes:
        entering: the layers whose output features are the hidden units: gate and up projection, or the first layer of a
            plain MLP.
        leaving: the layer whose input features are the hidden units: the down projection.
        stacked: number of such matrices that one layer of `entering` stacks along its output features.
        norm: the norm between `leaving` and the residual stream; None if there is none.
    """

    entering: tuple[str, ...]
    leaving: str
    stacked: int = 1
    norm: str | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all linear layers of the MLP, the one that leaves it last."""
        return (*self.entering, self.leaving)

    def sets_order(self, site: str) -> bool:
        """Return whether hidden units may be permuted to suit the layer `site`: true for the first of `entering`."""
        return self.stacked == 1 and site.endswith(f".{self.entering[0]}")


@dataclass(frozen=True)
class HeadMatrices:
    """The projections of queries, keys and values, by their names inside the block.

    `divides_width`: the config class refuses a hidden size that is not a multiple of the number of query heads.
    """

    queries: str = "self_attn.q_proj"
    keys: str = "self_attn.k_proj"
    values: str = "self_attn.v_proj"
    divides_width: bool = False


@dataclass(frozen=True)
class Attention:
    """The modules of a block's attention, by their names inside the block.

    Attributes:
        leaving: the output projection, whose input features are those of all query heads.
        norm: the norm between `leaving` and the residual stream; None if there is none.
        scaled: whether the block multiplies the output of `leaving` before it adds it to the residual stream.
        heads: the projections of the heads; None if heads cannot be removed, because the config has no field for the
            width of a head, one matrix holds queries, keys and values, or a norm spans all heads.
    """

    leaving: str = "self_attn.o_proj"
    norm: str | None = None
    scaled: bool = False
    heads: HeadMatrices | None = None

    @property
    def adds(self) -> bool:
        """Whether the output of `leaving` is added to the residual stream as it is."""
        return self.norm is None and not self.scaled


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a block, by the names of its tensors inside the block, as files have them.

    Attributes:
        listed: the module whose experts each have a module of their own: `{listed}.{number}.…`; None if no file has
            them one by one.
        stacked: the tensors that hold all experts along their first dimension, in files that have them so.
        router: the tensors with an entry for each expert along their first dimension; a file has some of them.
        count_fields: the config's names for the number of experts, of which a file has one.
        module: the module of the experts in the transformers model. It is called with states [tokens, width], the
            numbers of the experts chosen for each token, and their weights, both [tokens, chosen]; None if it is
            called otherwise, so that experts cannot be removed.
        shared: the shared experts, which read every token; None if there are none.
    """

    listed: str | None = "mlp.experts"
    stacked: tuple[str, ...] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    router: tuple[str, ...] = ("mlp.gate.weight",)
    count_fields: tuple[str, ...] = ("num_experts", "num_local_experts")
    module: str | None = "mlp.experts"
    shared: Mlp | None = None

    def number_of(self, name: str) -> int | None:
        """Return the number of the expert that a tensor inside the block belongs to; None if it is of none alone."""
        if self.listed is None or not name.startswith(f"{self.listed}."):
            return None
        number = name.removeprefix(f"{self.listed}.").partition(".")[0]
        return int(number) if number.isdecimal() else None

    def holds_all(self, name: str) -> bool:
        """Return whether the first dimension of a tensor inside the block counts the experts."""
        return name in self.stacked or name in self.router


@dataclass(frozen=True)
class GgufNames:
    """The names that GGUF files use for an architecture and its modules.

    Attributes:
        architecture: the value of `general.architecture`.
        outside: {GGUF name: full transformers name} of the modules outside the blocks.
        block: {GGUF name behind `blk.N.`: transformers name inside the block} of the modules in a block.
    """

    architecture: str
    outside: Mapping[str, str]
    block: Mapping[str, str]


@dataclass(frozen=True)
class Architecture:
    """The names of a model type's modules in the transformers model, and of fields of its config.

    Attributes:
        model_type: the config's `model_type`.
        base: the attribute that holds the base model; some checkpoints leave it out of their tensor names.
        blocks: full name of the list of blocks.
        embedding: full name of the embedding.
        tied: the default of `tie_word_embeddings` in the config.
        mlp: the linear layers of the MLP.
        attention: the modules of the attention.
        layout: how linear layers store their matrix: "linear" as [out, in], "conv1d" as [in, out].
        head: full name of the output head.
        old_head: the output head's name in files of older checkpoints; None if it is the same.
        blocks_field: the config's name for the number of blocks.
        width_field: the config's name for the number of hidden units of an MLP; None if the config cannot state it.
        experts: the mixture of experts that all or some blocks have in place of `mlp`; None if there is none.
        mixed: whether blocks may differ in the tensors that they hold, or in the shapes of these.
        fixed_depth: whether what a block computes depends on the number of blocks, so that none can be removed.
        refused: fields of the config with transformers' defaults; a model in which one of them is on is refused.
        whole: names, inside the block, of modules whose matrices are never replaced, narrowed or rounded.
        left_out: beginnings of the names of stored tensors that transformers leaves out, such as those of a module that
            predicts several tokens at once.
        integers: whether transformers' code of it works with matrices that compressed-tensors keeps as integers; see
            `packable`.
        gguf: the names in GGUF files; None if GGUF files of the architecture cannot be opened.
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
    width_field: str | None = "intermediate_size"
    experts: Experts | None = None
    mixed: bool = False
    fixed_depth: bool = False
    refused: Mapping[str, Any] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    integers: bool = True
    gguf: GgufNames | None = None

    @property
    def packable(self) -> bool:
        """Whether transformers opens a model of it whose matrices are rounded to integers.

        Its reader of such models cannot put experts together that files have one by one.
        """
        one_by_one = self.experts is not None and self.experts.listed is not None
        return self.integers and not one_by_one

    def leaves_out(self, name: str, config: Mapping[str, Any]) -> bool:
        """Return whether transformers leaves out the tensor that is stored as `name`.

        Besides those of `left_out`, these are blocks behind the last one, which predict several tokens at once.
        """
        if self.left_out and name.startswith(self.left_out):
            return True
        behind, blocks = config.get("num_nextn_predict_layers"), config.get(self.blocks_field)
        if type(behind) is not int or type(blocks) is not int:
            return False
        number = self.canonical(name).removeprefix(f"{self.blocks}.").partition(".")[0]
        return number.isdecimal() and blocks <= int(number) < blocks + behind

    def keeps_whole(self, module: str) -> bool:
        """Return whether a module inside a block, given by its full name, is one of `whole` or inside one."""
        return any(f".{name}." in f"{module}." for name in self.whole)

    def canonical(self, name: str) -> str:
        """Return the name in transformers' causal language model of a tensor that is stored as `name`."""
        if self.old_head and name.startswith(f"{self.old_head}."):
            return self.head + name.removeprefix(self.old_head)
        if name.startswith((f"{self.base}.", f"{self.head}.")):
            return name
        return f"{self.base}.{name}"

"""The answers of `GET /methods` and `GET /architectures`."""

from typing import Any, Literal

from pydantic import Field

from modelpress.contract.job import Answer
from modelpress.spec.methods import Leaves, Need
from modelpress.spec.precision import Precision


class RatioRange(Answer):
    """The target ratios that a method can reach on a model."""

    lowest: float
    highest: float


class ReachedRange(RatioRange):
    """The target ratios that a method can reach on a model at one precision in one format."""

    precision: Precision
    format: str


class MethodInfo(Answer):
    """A method that a recipe may name."""

    name: str
    title: str = Field(description="short name of what it does")
    description: str
    paper: str | None = Field(description="address of the paper; null for a method of this project")
    needs: tuple[Need, ...] = Field(description="inputs that it needs besides the weights")
    leaves: Leaves = Field(
        description="kind of checkpoint that it leaves. `plain`: the original's architecture, which stock engines "
        "open; `factored`: factored matrices, with model code in the package; `either`: one of both, depending on the "
        "model"
    )
    options: dict[str, Any] = Field(description="JSON schema of the object that a recipe may send as its method")
    range: RatioRange | None = Field(
        None,
        description="ratios that it reaches on the requested model with its default options, at the precision 'auto' "
        "in the format 'safetensors'",
    )
    ranges: tuple[ReachedRange, ...] = Field(
        (), description="the same for each precision and format in which the method can leave the requested model"
    )
    refusal: str | None = Field(None, description="why it cannot compress the requested model")


class MethodList(Answer):
    """All methods, the default first."""

    methods: tuple[MethodInfo, ...]


class ArchitectureInfo(Answer):
    """An architecture whose models can be compressed."""

    model_type: str = Field(description="as in the model's config.json")
    known: Literal["registered", "inferred"] = Field(
        description="inferred: its parts were found by structure alone; a recipe that takes such models says "
        '"architecture": "inferred"'
    )
    gguf: bool = Field(description="whether GGUF files of the architecture are accepted")
    fewer_heads: bool = Field(description="whether `width` can remove key/value heads")
    mixture: bool = Field(description="whether its models are mixtures of experts")
    methods: tuple[str, ...] = Field(description="methods that can be used on its models")


class RefusedArchitecture(Answer):
    """An architecture whose models are refused."""

    model_type: str
    reason: str


class ArchitectureList(Answer):
    """All architectures, the registered ones first."""

    architectures: tuple[ArchitectureInfo, ...]
    refused: tuple[RefusedArchitecture, ...] = Field(
        description="the other causal language models of transformers, and why their parts cannot be told"
    )


class SourceList(Answer):
    """Models or texts that a recipe can name."""

    references: tuple[str, ...] = Field(description="of very many, some")
    hub: bool = Field(description="whether names of the hub can be sent as well")

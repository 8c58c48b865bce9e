"""What the service offers: `GET /methods` and `GET /architectures` list it."""

from typing import Any

from pydantic import Field

from app.contract.job import Answer
from workers.compression.spec.methods import Leaves, Need


class RatioRange(Answer):
    """The target ratios that a method reaches on a model."""

    lowest: float
    highest: float


class MethodInfo(Answer):
    """A method that a recipe may name."""

    name: str
    title: str = Field(description="what it does, in a few words")
    description: str
    paper: str | None = Field(description="where it was published; null for a method of this project's own")
    needs: tuple[Need, ...] = Field(description="what it computes from, besides the weights")
    leaves: Leaves = Field(
        description="`plain`: a checkpoint of the original's architecture, which stock engines open; `factored`: one "
        "whose own code travels with it; `either`: the one or the other, depending on the model"
    )
    options: dict[str, Any] = Field(description="JSON schema of the object that a recipe may send as its method")
    range: RatioRange | None = Field(
        None, description="the ratios that it reaches on the model that was asked about, with its default options"
    )
    refusal: str | None = Field(None, description="why it is not for the model that was asked about")


class MethodList(Answer):
    """All methods, the default first."""

    methods: tuple[MethodInfo, ...]


class ArchitectureInfo(Answer):
    """An architecture whose models can be compressed."""

    model_type: str = Field(description="as in the model's config.json")
    gguf: bool = Field(description="whether a GGUF file of the architecture can be sent, too")
    fewer_heads: bool = Field(description="whether `width` can remove key/value heads")


class ArchitectureList(Answer):
    """All architectures."""

    architectures: tuple[ArchitectureInfo, ...]

"""`compression_report.json` and `sweep_report.json`: what was done to a model, what it cost, and how to do it again.

The files travel with the checkpoints, so they are understood without the service: `GET /schemas/compression-report/1`
and `GET /schemas/sweep-report/1` have their schemas. Fields may be added to a version; none changes its meaning or goes
without a new one.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.contract.job import Comparison, SweepResult
from app.contract.recipe import Recipe
from workers.compression.spec.steps import Criterion, Step

SCHEMA_VERSION: Literal[1] = 1
SCHEMA_PATH = f"/schemas/compression-report/{SCHEMA_VERSION}"
SWEEP_SCHEMA_VERSION: Literal[1] = 1
SWEEP_SCHEMA_PATH = f"/schemas/sweep-report/{SWEEP_SCHEMA_VERSION}"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class SiteReport(Section):
    """One matrix of the original and what became of it."""

    name: str = Field(description="the module's name in the original")
    block: int | None = Field(None, description="number of its block in the original; null outside the blocks")
    role: str = Field(description="its name within the block, such as 'mlp.down_proj'; outside, its whole name")
    structure: dict[str, Any] | None = Field(None, description="as in config.json; null where it is a plain matrix")
    parameters_before: int
    parameters_after: int = Field(description="0 where the matrix is gone, or reads the table of another")
    relative_error: float | None = Field(
        None,
        description="norm of the difference of its outputs from their target / norm of the target, before training",
    )

    @property
    def kept(self) -> float:
        """The part of its parameters that is left."""
        return self.parameters_after / self.parameters_before


class RemovedBlock(Section):
    """A block of the original that is gone, and the scores of the blocks that were asked when it was chosen."""

    block: int
    criterion: Criterion = Field(description="what the scores are, as in the recipe's method")
    scores: dict[int, float] = Field(description="by block; the least of them went")


class CurvePoint(Section):
    """A point of the loss curve: the mean loss of the steps since the point before."""

    step: int = Field(description="optimizer steps so far, all phases together")
    tokens: int = Field(description="tokens trained on so far")
    loss: float


class DistillationPhase(Section):
    """One phase: a group of matrices was compressed, then the whole model trained."""

    compressed: tuple[str, ...] = Field(
        description="what was compressed in this phase: embedding, blocks and head by their names in the original"
    )
    tokens: int = Field(description="tokens that the phase trained on")
    restarts: int = Field(description="how often the phase's training diverged and continued at half the learning rate")
    loss: float = Field(description="loss at the end of the phase")


class DistillationReport(Section):
    """How the distillation went."""

    tokens: int = Field(description="tokens trained on in all")
    restarts: int = Field(
        0, description="how often training diverged, went back to a checkpoint and continued at half the learning rate"
    )
    points: tuple[CurvePoint, ...] = Field(description="the loss curve")
    phases: tuple[DistillationPhase, ...] = Field((), description="the phases in their order, at least one")


class TeacherText(Section):
    """Text that the original wrote for `teacher:`, and what that cost."""

    tokens: int
    seconds: float = Field(description="in all attempts together")


class OriginalRecord(Section):
    """Exactly which model was compressed."""

    reference: str = Field(description="as in the recipe")
    revision: str | None = Field(None, description="commit of a hub model")
    sha256: dict[str, str] = Field(description="of each of its files that was read")


class TextRecord(Section):
    """Exactly which text was read."""

    revision: str | None = Field(None, description="commit of a hub dataset")
    sha256: str


class Environment(Section):
    """Where it was computed. Elsewhere sums are rounded in another order, and the last bits differ."""

    device: str = Field(description="the processor's instruction set, or the name of the GPU")
    dtype: str = Field(description="in which matrices were multiplied")
    threads: int
    processes: int = Field(1, description="that a distillation was divided among")
    platform: str


class Reproducibility(Section):
    """With the recipe, all that the result depends on: the same again gives the same weights, bit for bit."""

    original: OriginalRecord
    texts: dict[str, TextRecord] = Field(description="by their names in the recipe")
    versions: dict[str, str]
    environment: Environment


class CompressionReport(Section):
    """The report of one job."""

    schema_version: Literal[1] = SCHEMA_VERSION
    job_id: str
    recipe: Recipe
    method: str = Field(description="the recipe's, or the one that 'auto' chose")
    tried: dict[str, float] = Field(
        description="perplexity that each method left which 'auto' tried, on text kept back for that"
    )
    target_ratio: float
    achieved_ratio: float = Field(description="stored parameters before / after")
    metrics: Comparison
    sites: tuple[SiteReport, ...] = Field(description="every matrix, those of the embedding and the head included")
    removed_blocks: tuple[RemovedBlock, ...] = Field(description="in the order in which they went")
    steps: tuple[Step, ...] = Field(description="what was done, in this order")
    teacher_text: TeacherText | None = Field(None, description="null where the recipe does not ask for `teacher:`")
    distillation: DistillationReport | None = None
    formats: tuple[str, ...] = Field(
        description="that the package holds: `safetensors` at its top, each other in a directory of its name"
    )
    reproducibility: Reproducibility


class SweepReport(Section):
    """`sweep_report.json`, the report of a job with several ratios: what each came to. Everything about one of them
    stands in the `compression_report.json` of its directory."""

    schema_version: Literal[1] = SWEEP_SCHEMA_VERSION
    job_id: str
    recipe: Recipe
    results: tuple[SweepResult, ...] = Field(description="in the order of the recipe's ratios")


def report_schema() -> dict[str, Any]:
    """The JSON schema of the report."""
    return schema_of(CompressionReport, SCHEMA_PATH)


def sweep_report_schema() -> dict[str, Any]:
    """The JSON schema of the report on several ratios."""
    return schema_of(SweepReport, SWEEP_SCHEMA_PATH)


def schema_of(report: type[Section], path: str) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": path,
        **report.model_json_schema(mode="serialization"),
    }

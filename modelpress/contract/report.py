"""The files `compression_report.json` and `sweep_report.json`: what was done to a model, with what result.

The files are part of the package, so they can be read without the service; their schemas are at `GET
/schemas/compression-report/1` and `GET /schemas/sweep-report/1`. Within a version, fields may be added, but none
changes its meaning or is removed.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelpress.contract.job import Comparison, SweepResult
from modelpress.contract.recipe import Recipe
from modelpress.spec.criteria import Criterion
from modelpress.spec.steps import Step

SCHEMA_VERSION: Literal[1] = 1
SCHEMA_PATH = f"/schemas/compression-report/{SCHEMA_VERSION}"
SWEEP_SCHEMA_VERSION: Literal[1] = 1
SWEEP_SCHEMA_PATH = f"/schemas/sweep-report/{SWEEP_SCHEMA_VERSION}"


class Section(BaseModel):
    """Base of all parts of a report: immutable."""

    model_config = ConfigDict(frozen=True)


class SiteReport(Section):
    """One matrix of the original, and what became of it."""

    name: str = Field(description="the module's name in the original")
    block: int | None = Field(None, description="number of its block in the original; null outside the blocks")
    role: str = Field(description="its name within the block, such as 'mlp.down_proj'; elsewhere its whole name")
    structure: dict[str, Any] | None = Field(None, description="as in config.json; null for a plain matrix")
    parameters_before: int
    parameters_after: int = Field(description="0 if the matrix was removed or shares the weights of another")
    relative_error: float | None = Field(
        None,
        description="relative error of its outputs on the calibration text before training: ‖output - target‖ / "
        "‖target‖",
    )

    @property
    def kept(self) -> float:
        """Return parameters after / before."""
        return self.parameters_after / self.parameters_before


class RoundedMatrix(Section):
    """One matrix of the finished model, and how a file format stores it."""

    name: str = Field(description="the module's name in the original")
    code: str | None = Field(description="the code that its weights are rounded to; null: 16 bits, not rounded")
    bits: float = Field(description="stored bits per weight, scales included")
    bytes: int = Field(description="its bytes in the file")
    divergence: float | None = Field(
        None,
        description="rise of the model's divergence by its rounding, in nats per token, as estimated when the code was "
        "chosen; null if it is not rounded",
    )
    relative_error: float | None = Field(
        None, description="relative error of its outputs on the calibration text: ‖output - target‖ / ‖target‖"
    )


class RoundingReport(Section):
    """How the weights were rounded for one file format."""

    format: str
    matrices: tuple[RoundedMatrix, ...] = Field(description="every matrix, embedding and head first")
    distillation: "DistillationReport | None" = Field(
        None, description="training of the rounded model; null if it was not trained once it was rounded"
    )


class RemovedBlock(Section):
    """A removed block of the original, and the scores of the blocks that were candidates."""

    block: int
    criterion: Criterion = Field(description="how the scores are computed, as in the recipe's method")
    scores: dict[int, float] = Field(description="score of each candidate block; the lowest was removed")


class RemovedExperts(Section):
    """The experts of a block's mixture that stay, by their numbers in the original."""

    block: int
    kept: tuple[int, ...]
    unreached: tuple[int, ...] = Field(
        description="experts that no token of the calibration text was sent to; more or other text may tell them apart"
    )


class CurvePoint(Section):
    """A point of the loss curve."""

    step: int = Field(description="optimizer steps so far, all phases together")
    tokens: int = Field(description="tokens trained on so far")
    loss: float = Field(description="mean loss of the steps since the previous point, in nats per token")


class DistillationPhase(Section):
    """One phase: a group of matrices was compressed, then the whole model trained."""

    compressed: tuple[str, ...] = Field(
        description="parts compressed in this phase: embedding, blocks and head by their names in the original"
    )
    tokens: int = Field(description="tokens that the phase trained on")
    restarts: int = Field(description="how often its training diverged and continued at half the learning rate")
    loss: float = Field(description="loss at the end of the phase")


class DistillationReport(Section):
    """The course of the distillation."""

    tokens: int = Field(description="tokens trained on in all")
    restarts: int = Field(
        0, description="how often training diverged, went back to a checkpoint and continued at half the learning rate"
    )
    points: tuple[CurvePoint, ...] = Field(description="the loss curve")
    phases: tuple[DistillationPhase, ...] = Field((), description="the phases in their order, at least one")


class TeacherText(Section):
    """The cost of the text that the original wrote for `teacher:`."""

    tokens: int
    seconds: float = Field(description="time to write them, all attempts together")


class OriginalRecord(Section):
    """The exact model that was compressed."""

    reference: str = Field(description="the model as named in the recipe")
    revision: str | None = Field(None, description="commit of a hub model")
    sha256: dict[str, str] = Field(description="SHA-256 of each file that was read")


class TextRecord(Section):
    """The exact text of a dataset."""

    revision: str | None = Field(None, description="commit of a hub dataset")
    sha256: str


class Environment(Section):
    """The machine that computed the result. Another machine may round sums differently, so the last bits can differ."""

    device: str = Field(description="the processor's instruction set, or the name of the GPU")
    dtype: str = Field(description="data type of matrix products")
    threads: int
    processes: int = Field(1, description="processes among which a distillation was divided")
    platform: str


class Reproducibility(Section):
    """Everything besides the recipe that the result depends on; with the same values it is the same, bit for bit."""

    original: OriginalRecord
    texts: dict[str, TextRecord] = Field(description="by their names in the recipe")
    versions: dict[str, str]
    environment: Environment


class CompressionReport(Section):
    """The report of one job."""

    schema_version: Literal[1] = SCHEMA_VERSION
    job_id: str
    recipe: Recipe
    method: str = Field(description="the recipe's method, or the one that 'auto' chose")
    tried: dict[str, float] = Field(
        description="perplexity on held-out calibration text that each method tried by 'auto' left"
    )
    target_ratio: float
    achieved_ratio: float = Field(description="bytes of the weights before, at 16 bits a number, / after")
    warnings: tuple[str, ...] = Field((), description="what should be known before the result is used")
    metrics: Comparison
    sites: tuple[SiteReport, ...] = Field(description="every matrix, including embedding and head")
    removed_blocks: tuple[RemovedBlock, ...] = Field(description="in the order of their removal")
    removed_experts: tuple[RemovedExperts, ...] = Field((), description="one entry for each mixture that lost experts")
    steps: tuple[Step, ...] = Field(description="steps of the compression, in order")
    rounding: tuple[RoundingReport, ...] = Field((), description="for each format whose weights are rounded")
    teacher_text: TeacherText | None = Field(None, description="null if the recipe does not use `teacher:`")
    distillation: DistillationReport | None = None
    formats: tuple[str, ...] = Field(
        description="formats in the package: `safetensors` at its top, every other in a directory named after it"
    )
    reproducibility: Reproducibility


class SweepReport(Section):
    """The report of a job with several ratios; each has a `compression_report.json` in its own directory."""

    schema_version: Literal[1] = SWEEP_SCHEMA_VERSION
    job_id: str
    recipe: Recipe
    results: tuple[SweepResult, ...] = Field(description="in the order of the recipe's ratios")


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of `compression_report.json`."""
    return schema_of(CompressionReport, SCHEMA_PATH)


def sweep_report_schema() -> dict[str, Any]:
    """Return the JSON schema of `sweep_report.json`."""
    return schema_of(SweepReport, SWEEP_SCHEMA_PATH)


def schema_of(report: type[Section], path: str) -> dict[str, Any]:
    """Return the JSON schema of a report, with `path` as its `$id`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": path,
        **report.model_json_schema(mode="serialization"),
    }

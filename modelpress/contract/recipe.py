"""The recipe of a job: what a client asks for, as it is sent and stored."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from modelpress.contract.distillation import Distillation
from modelpress.contract.fields import (
    TEACHER,
    Device,
    EvaluationDataset,
    Formats,
    Model,
    Ratio,
    Ratios,
    Tasks,
    check_target,
)
from modelpress.contract.method import MethodChoice
from modelpress.contract.options import Mixed, Options
from modelpress.spec.formats import FORMATS, MAIN
from modelpress.spec.methods.auto import AutoOptions
from modelpress.spec.precision import PLAIN_BITS, Precision


class Calibration(Mixed):
    """Text on which the original's activations are measured."""

    sequences: int = Field(32, ge=1, le=4096, description="number of sequences")
    length: int = Field(1024, ge=16, le=32768, description="tokens per sequence")

    @model_validator(mode="after")
    def check_sequences(self) -> Self:
        """Raise ValueError if the sequences do not suffice for one of each dataset."""
        for dataset, sequences in self.divided(self.sequences).items():
            if sequences == 0:
                raise ValueError(f"{self.sequences} sequences leave none for {dataset}; raise sequences")
        return self


class Gate(Options):
    """Bounds that the result must meet on every evaluation dataset.

    If it misses one, the job fails with the code `quality_gate`; its checkpoint can still be downloaded.
    """

    max_perplexity_ratio: float | None = Field(
        None, ge=1, description="greatest perplexity after / before", allow_inf_nan=False
    )
    min_top1_agreement: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of positions at which original and result predict the same most likely token",
    )

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        """Raise ValueError if there is no bound."""
        if all(bound is None for _, bound in self):
            raise ValueError(f"send at least one of {', '.join(type(self).model_fields)}")
        return self


class Evaluation(Options):
    """Text on which original and result are compared. It must not be text of the calibration or the distillation."""

    datasets: tuple[EvaluationDataset, ...] = Field(
        ("builtin:python-docs-test",),
        min_length=1,
        max_length=8,
        description="datasets to measure on, each by itself; all but 'teacher:'",
    )
    window: int = Field(1024, ge=16, le=32768, description="tokens per window; windows do not overlap")
    max_tokens: int = Field(20_480, ge=16, le=10_000_000, description="most tokens of each dataset to measure on")
    gate: Gate | None = Field(None, description="bounds that the result must meet; null: none")
    baseline: bool = Field(
        False, description="also measure the original with blocks dropped until it is about as small as the result"
    )

    tasks: Tasks = Field(
        (),
        description="lm-eval tasks, groups or tags to run on original and result, which takes minutes to hours each; "
        "their data must be on the worker. Overlap with the calibration or distillation text is not checked",
    )
    task_limit: int | None = Field(
        None, ge=1, le=1_000_000, description="run only this many examples of each task, the first ones; null: all"
    )

    @model_validator(mode="after")
    def check_limit(self) -> Self:
        """Raise ValueError if there is a limit but no task."""
        if self.task_limit is not None and not self.tasks:
            raise ValueError("task_limit has no effect without tasks; send tasks or leave it out")
        return self

    @model_validator(mode="after")
    def check_window(self) -> Self:
        """Raise ValueError if the tokens do not suffice for one window."""
        if self.max_tokens < self.window:
            raise ValueError(f"max_tokens ({self.max_tokens}) is less than one window ({self.window}); lower window")
        return self


class Recipe(Options):
    """The body of `POST /jobs`. Only `model` and a target are required: `target_ratio` or `target_bytes`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"model": "local:smollm2-135m-instruct.gguf", "target_ratio": 4}]},
    )

    model: Model = Field(description="'org/name[@revision]' on the hub, or 'local:NAME' under MODELPRESS_MODEL_ROOTS")
    architecture: Literal["registered", "inferred"] = Field(
        "registered",
        description="'registered' takes models of the architectures that `GET /architectures` lists as such; "
        "'inferred' also those whose parts were found by structure alone, with a warning in job and report",
    )
    target_bytes: Annotated[ByteSize | None, Field(gt=0)] = Field(
        None,
        description="greatest size of the weights in the file of each format, such as '1.5GB' or 700000000; in place "
        "of target_ratio: the service turns it into one, which the job then shows",
    )
    target_ratio: Annotated[Ratio | Ratios | None, WrapValidator(check_target)] = Field(
        None,
        validate_default=True,
        description="bytes of the weights before / after: before at 16 bits a number, each distinct tensor counted "
        "once; after as they lie in the file of each format. 4 means 4 times smaller. A list of up to 8 makes a "
        "checkpoint for each, in a directory named after its ratio, and a report that compares them; all share one "
        "calibration",
    )
    precision: Precision = Field(
        "auto",
        description="the most bits that a weight inside the model may keep: 16 rounds none, so that the structure "
        "alone makes the model smaller. 'auto' gives each matrix as many bits as pay; with a method that is named it "
        "rounds only where the method alone does not reach the ratio",
    )
    embedding_precision: Precision = Field(
        "auto",
        description="the most bits that embedding and output head may keep where weights are rounded; 'auto': as "
        "`precision`. 16 leaves them unrounded, as vLLM needs it",
    )
    method: MethodChoice = Field(
        default_factory=AutoOptions,
        description="how the model is made smaller: the name of a method, or an object with its `name` and options; "
        "`GET /methods` lists them",
    )
    calibration: Calibration = Calibration()
    distillation: Distillation | None = Field(None, description="training after the compression; null: none")
    evaluation: Evaluation = Evaluation()
    formats: Formats = Field(
        (MAIN,),
        description=f"formats in which the result is written. {MAIN!r} is required and lies at the top of the package, "
        "every other format in a directory named after it. "
        + "; ".join(f"`{form.name}`: {form.title}, {form.description}" for form in FORMATS.values()),
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all random choices")
    device: Device | None = Field(
        None,
        description="the workers that may compute the job: 'cpu', 'gpu' or a label that some offer; null: any. "
        "`GET /workers` lists them",
    )
    priority: int = Field(0, ge=-100, le=100, description="jobs of the team with a higher number are computed first")
    metadata: dict[str, str] = Field(
        default_factory=dict,
        max_length=16,
        description="any keys and values of yours, stored and returned unchanged",
        json_schema_extra={
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    )

    @field_validator("precision", "embedding_precision", mode="before")
    @classmethod
    def read_precision(cls, precision: Any) -> Any:
        """Return a number of bits that was sent as text as a number."""
        return int(precision) if isinstance(precision, str) and precision.isdecimal() else precision

    @field_validator("embedding_precision")
    @classmethod
    def check_embedding_precision(cls, embedding: Precision, info: ValidationInfo) -> Precision:
        """Raise ValueError for few bits of the embedding where nothing is rounded."""
        if info.data.get("precision") == PLAIN_BITS and embedding not in ("auto", PLAIN_BITS):
            raise ValueError("precision 16 rounds nothing; leave embedding_precision out, or send a lower precision")
        return embedding

    @field_validator("target_ratio")
    @classmethod
    def check_one_target(cls, target: float | tuple[float, ...] | None, info: ValidationInfo) -> Any:
        """Raise ValueError unless there is one target."""
        if "target_bytes" in info.data and (target is None) == (info.data["target_bytes"] is None):
            raise ValueError("send how many times smaller, such as 4, or target_bytes, and not both")
        return target

    @field_validator("metadata")
    @classmethod
    def check_metadata(cls, metadata: dict[str, str]) -> dict[str, str]:
        """Raise ValueError if a key or a value is too long."""
        for key, value in metadata.items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError("keys may have up to 64 characters, values up to 512")
        return metadata

    @property
    def is_sweep(self) -> bool:
        """Return whether the ratio was sent as a list, even of one; the result then has a directory for each ratio."""
        return isinstance(self.target_ratio, tuple)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return the target ratios in the order in which they were sent.

        Raises ValueError if the recipe names bytes: `sized` turns them into a ratio once the model is known.
        """
        if self.target_ratio is None:
            raise ValueError("the recipe names target_bytes, which are no ratio until the model is known")
        return self.target_ratio if isinstance(self.target_ratio, tuple) else (self.target_ratio,)

    def sized(self, bytes_before: int) -> Self:
        """Return the recipe with its target as a ratio, for a model of so many bytes at 16 bits a number."""
        if self.target_bytes is None:
            return self
        return self.model_copy(update={"target_ratio": bytes_before / self.target_bytes, "target_bytes": None})

    @property
    def teacher_text(self) -> tuple[int, int] | None:
        """Return the number and length of the sequences of `teacher:` text that serve every section, or None.

        The length is that of the section that needs most tokens, because longer sequences take longer to write. None
        means that no section uses `teacher:`.
        """
        asked = [(sequences[TEACHER], length) for sequences, length in self._readers() if TEACHER in sequences]
        if not asked:
            return None
        tokens, length = max((sequences * length, length) for sequences, length in asked)
        return math.ceil(tokens / length), length

    def _readers(self) -> Iterator[tuple[dict[str, int], int]]:
        """Yield, for calibration and distillation, the number of sequences by dataset and their length in tokens."""
        yield self.calibration.divided(self.calibration.sequences), self.calibration.length
        if self.distillation is not None:
            yield self.distillation.divided(self.distillation.windows), self.distillation.length

    def at(self, ratio: float) -> Self:
        """Return the recipe that makes only the checkpoint of this ratio."""
        return self.model_copy(update={"target_ratio": ratio})

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield field, such as 'calibration.datasets.0', and name of every dataset except `teacher:`."""
        sections = {"calibration": self.calibration, "distillation": self.distillation, "evaluation": self.evaluation}
        for name, section in sections.items():
            for index, dataset in enumerate(section.datasets if section else ()):
                if dataset != TEACHER:
                    yield f"{name}.datasets.{index}", dataset

"""The recipe of a job: what a client asks for, as it travels over the wire and lies in the database."""

import math
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from app.contract.method import MethodChoice
from workers.compression.spec.formats import FORMATS, MAIN
from workers.compression.spec.methods.auto import AutoOptions

Trainable = Literal["all", "factors", "norms"]

HUB_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
LOCAL_NAME = re.compile(r"local:[^/].*")
TEACHER = "teacher:"
DATASET = re.compile(
    r"teacher:|builtin:[\w-]+|local:[^/].*|hub:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+){1,2}", re.ASCII
)
TASK = re.compile(r"[A-Za-z0-9][\w.()+-]{0,127}", re.ASCII)
TEXTS = (
    "where the text comes from; 'teacher:' is text that the original writes itself, which takes minutes and, "
    "meanwhile, memory for the whole of the original"
)


def check_model(reference: str) -> str:
    if HUB_MODEL.fullmatch(reference) or LOCAL_NAME.fullmatch(reference):
        return reference
    raise ValueError("send 'org/name', 'org/name@revision' or 'local:NAME'")


def check_dataset(reference: str) -> str:
    if DATASET.fullmatch(reference):
        return reference
    raise ValueError("send 'builtin:NAME', 'local:NAME', 'hub:org/name/config/split' or 'teacher:'")


def check_foreign(reference: str) -> str:
    if reference != TEACHER:
        return reference
    raise ValueError("a model judged by text of its own proves nothing; send other text, such as 'local:NAME'")


def check_task(name: str) -> str:
    # A name alone: the library that runs tasks would also take a path, and run what lies there.
    if TASK.fullmatch(name):
        return name
    raise ValueError("send the name of a task of lm-eval, such as 'arc_easy', or of the operator's own")


def check_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(tasks)) < len(tasks):
        raise ValueError("name each task once")
    return tasks


def check_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"send one of {', '.join(FORMATS)}")
    return name


def check_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(formats)) < len(formats):
        raise ValueError("name each format once")
    if MAIN not in formats:
        raise ValueError(f"{MAIN!r} is the checkpoint that all others are made beside; add it")
    return formats


def check_mixture(datasets: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(datasets)) < len(datasets):
        raise ValueError("name each dataset once; `shares` says how much of each is read")
    return datasets


def check_ratio(ratio: float) -> float:
    if ratio > 1:
        return ratio
    hint = f"send {1 / ratio:.3g}" if 0 < ratio < 1 else "send a number above 1, such as 1.5"
    raise ValueError(f"must be above 1, since it is stored parameters before / after; {hint}")


def check_ratios(ratios: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(ratios)) < len(ratios):
        raise ValueError("send each ratio once")
    return ratios


def check_target(target: Any, _: ValidatorFunctionWrapHandler) -> float | tuple[float, ...]:
    """A list is judged as a list and all else as a number, so that what is wrong is said of what was meant."""
    if isinstance(target, list | tuple):
        return RATIOS.validate_python(target)
    return RATIO.validate_python(target)


Ratio = Annotated[float, Field(allow_inf_nan=False), AfterValidator(check_ratio)]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1, max_length=8), AfterValidator(check_ratios)]
RATIO: TypeAdapter[float] = TypeAdapter(Ratio)
RATIOS: TypeAdapter[tuple[float, ...]] = TypeAdapter(Ratios)
Dataset = Annotated[str, AfterValidator(check_dataset)]
Foreign = Annotated[Dataset, AfterValidator(check_foreign)]
Tasks = Annotated[
    tuple[Annotated[str, AfterValidator(check_task)], ...], Field(max_length=16), AfterValidator(check_tasks)
]
FormatName = Annotated[str, AfterValidator(check_format), Field(json_schema_extra={"enum": list(FORMATS)})]
Formats = Annotated[tuple[FormatName, ...], Field(min_length=1), AfterValidator(check_formats)]
Share = Annotated[int, Field(ge=1, le=1000)]
Mixture = Annotated[tuple[Dataset, ...], Field(min_length=1, max_length=8), AfterValidator(check_mixture)]


class Options(BaseModel):
    """Unknown fields are refused: a misspelt option must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mixed(Options):
    """Text of one dataset or of several."""

    datasets: Mixture = Field(("builtin:python-docs",), description=TEXTS)
    shares: tuple[Share, ...] | None = Field(
        None, description="of the datasets in their order; [1, 2] reads twice as much of the second; null: equally much"
    )

    @field_validator("shares")
    @classmethod
    def check_shares(cls, shares: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        datasets = info.data.get("datasets", ())
        if shares is not None and datasets and len(shares) != len(datasets):
            raise ValueError(f"{len(shares)} shares for {len(datasets)} datasets; send one for each, or leave them out")
        return shares

    def divided(self, sequences: int) -> dict[str, int]:
        """How many of so many sequences come from each dataset."""
        shares = self.shares or (1,) * len(self.datasets)
        ends = [sequences * end // sum(shares) for end in accumulate(shares, initial=0)]
        return {dataset: end - begin for dataset, (begin, end) in zip(self.datasets, pairwise(ends), strict=True)}


class Calibration(Mixed):
    """Text on which the original's activations are measured."""

    sequences: int = Field(32, ge=1, le=4096, description="number of sequences")
    length: int = Field(1024, ge=16, le=32768, description="tokens per sequence")

    @model_validator(mode="after")
    def check_sequences(self) -> Self:
        for dataset, sequences in self.divided(self.sequences).items():
            if sequences == 0:
                raise ValueError(f"{self.sequences} sequences leave none for {dataset}; raise sequences")
        return self


class Distillation(Mixed):
    """Training of the compressed model, the student, to predict what the original, its teacher, predicts.

    The loss, in nats per token, is the KL divergence of the student's next-token distributions from the teacher's, plus
    the further losses that are given a weight here. Teacher, student (float32) and six times the trained parameters
    (float32) must fit into the worker's memory together; otherwise the job ends with `out_of_memory`. With several GPUs
    each needs that much. If the training is `sharded`, each needs only its share of the blocks, but all of the
    embedding and the head, and room for both models while they are opened; the first process then also needs host
    memory for three times the trained parameters.
    """

    tokens: int = Field(
        262_144, ge=16, le=1_000_000_000, description="tokens to train on in all; text that is shorter is repeated"
    )
    length: int = Field(512, ge=16, le=32768, description="tokens per sequence")
    batch_size: int = Field(4, ge=1, le=4096, description="sequences per optimizer step")
    micro_batch_size: int = Field(
        2,
        ge=1,
        le=4096,
        description="sequences per forward and backward pass, whose gradients are summed over the batch; fewer need "
        "less memory",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which needs less memory and more time"
    )
    learning_rate: float = Field(
        1e-4,
        gt=0,
        le=0.1,
        description="AdamW's rate at the end of the warm-up; from there it falls to 0 as a cosine",
    )
    warmup_ratio: float = Field(
        0.05, ge=0, le=1, description="share of the optimizer steps in which the learning rate rises"
    )
    temperature: float = Field(
        1.0,
        ge=0.1,
        le=20,
        description="divides the logits of teacher and student before they are compared; the divergence is multiplied "
        "by its square",
    )
    cross_entropy_weight: float = Field(
        0.0, ge=0, le=100, description="weight of the student's cross entropy on the text itself"
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the relative squared error of the student's last hidden states from the teacher's",
    )
    trainable: Trainable = Field(
        "all", description="which parameters are trained: all, those of factored matrices, or norms and biases"
    )
    teacher_top_k: int = Field(
        0,
        ge=0,
        le=4096,
        description="cache this many of the teacher's largest logits per token on disk (8 bytes each) and reuse them "
        "when text is repeated; the probability of all other tokens is compared as one sum. 0 caches nothing",
    )
    sharded: bool = Field(
        False,
        description="shard the blocks of both models, their gradients and their optimizer state over the GPUs (FSDP), "
        "which needs less memory on each and more communication. The largest number of GPUs that divides `batch_size` "
        "is used; with one GPU this has no effect",
    )
    phases: int = Field(
        1,
        ge=1,
        le=1024,
        description="compress the matrices in this many groups, from the embedding and the first blocks to the last, "
        "and train the whole model after each group on an equal share of the tokens; above 1 only for methods that do "
        "nothing but factor matrices",
    )

    @model_validator(mode="after")
    def check_teacher_cache(self) -> Self:
        if self.teacher_top_k and self.hidden_weight:
            raise ValueError("hidden states are not cached; send teacher_top_k or hidden_weight, not both")
        if self.teacher_top_k and self.sharded:
            raise ValueError(
                "a sharded teacher is computed by all GPUs at once, so its logits cannot be cached; "
                "send teacher_top_k or sharded, not both"
            )
        return self

    @model_validator(mode="after")
    def check_tokens(self) -> Self:
        batch = self.batch_size * self.length
        if self.tokens < batch:
            raise ValueError(
                f"tokens ({self.tokens}) is less than one batch, batch_size times length ({batch}); "
                "raise tokens, or lower batch_size or length"
            )
        for dataset, windows in self.divided(self.windows).items():
            if windows == 0:
                raise ValueError(
                    f"tokens ({self.tokens}) leaves no sequence of {self.length} for {dataset}; raise tokens"
                )
        if self.tokens < batch * self.phases:
            raise ValueError(
                f"tokens ({self.tokens}) leaves less than one batch, batch_size times length ({batch}), to each of "
                f"{self.phases} phases; raise tokens, or lower phases, batch_size or length"
            )
        return self

    @property
    def windows(self) -> int:
        """Number of sequences that hold the tokens, rounded up."""
        return math.ceil(self.tokens / self.length)


class Gate(Options):
    """What the result must reach on every evaluation dataset. A miss ends the job as `failed` with the code
    `quality_gate`; its checkpoint is kept and can be downloaded."""

    max_perplexity_ratio: float | None = Field(None, ge=1, description="perplexity after / before", allow_inf_nan=False)
    min_top1_agreement: float | None = Field(
        None, gt=0, le=1, description="share of tokens for which original and result hold the same one most likely"
    )

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        if self.max_perplexity_ratio is None and self.min_top1_agreement is None:
            raise ValueError("send max_perplexity_ratio, min_top1_agreement or both")
        return self


class Evaluation(Options):
    """Text on which original and result are compared; never text of the calibration or the distillation."""

    datasets: tuple[Foreign, ...] = Field(("builtin:python-docs-test",), min_length=1, max_length=8)
    window: int = Field(1024, ge=16, le=32768, description="tokens per window; windows do not overlap")
    max_tokens: int = Field(20_480, ge=16, le=10_000_000, description="at most this many tokens of each dataset")
    gate: Gate | None = Field(None, description="what the result must reach; null: nothing")
    baseline: bool = Field(
        False, description="also measure the original with so many blocks dropped that it is as small"
    )

    tasks: Tasks = Field(
        (),
        description="names of tasks, groups or tags of lm-eval that original and result are asked, which takes minutes "
        "to hours each; their data must lie on the worker, and whether the result was made from it is not checked",
    )
    task_limit: int | None = Field(
        None, ge=1, le=1_000_000, description="at most this many examples of each task, the first; null: all"
    )

    @model_validator(mode="after")
    def check_limit(self) -> Self:
        if self.task_limit is not None and not self.tasks:
            raise ValueError("task_limit is of no use without tasks; name some or leave it out")
        return self

    @model_validator(mode="after")
    def check_window(self) -> Self:
        if self.max_tokens < self.window:
            raise ValueError(f"max_tokens ({self.max_tokens}) is less than one window ({self.window}); lower window")
        return self


class Recipe(Options):
    """The body of `POST /jobs`. Only `model` and `target_ratio` are required."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"model": "local:smollm2-135m-instruct.gguf", "target_ratio": 1.31}]},
    )

    model: Annotated[str, AfterValidator(check_model)] = Field(
        description="'org/name[@revision]' on the hub, or 'local:NAME' under MODELPRESS_MODEL_ROOTS"
    )
    target_ratio: Annotated[Ratio | Ratios, WrapValidator(check_target)] = Field(
        description="stored parameters before / after, each distinct tensor counted once; 1.5 means 1.5 times smaller. "
        "A list of up to 8 makes a checkpoint for each, every one in a directory named after its ratio, beside a "
        "report that holds them against each other; one calibration serves them all"
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
        description=f"how the result is written. {MAIN!r} is always among them and lies at the top of the package, "
        "each other in a directory of its name. "
        + "; ".join(f"`{form.name}`: {form.title}, {form.description}" for form in FORMATS.values()),
    )
    seed: int = Field(0, ge=0, lt=2**63)
    metadata: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="yours; kept and returned as sent"
    )

    @field_validator("metadata")
    @classmethod
    def check_metadata(cls, metadata: dict[str, str]) -> dict[str, str]:
        for key, value in metadata.items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError("keys are at most 64 characters long, values 512")
        return metadata

    @property
    def is_sweep(self) -> bool:
        """Whether the ratios came as a list, be it of one: the result is then laid out as that of several."""
        return isinstance(self.target_ratio, tuple)

    @property
    def ratios(self) -> tuple[float, ...]:
        """In the order in which they were sent."""
        return self.target_ratio if isinstance(self.target_ratio, tuple) else (self.target_ratio,)

    @property
    def teacher_text(self) -> tuple[int, int] | None:
        """Sequences of TEACHER and tokens in each, enough for every section that reads it; None where none does.

        They are as long as those of the section that reads most: the longer a sequence, the slower it is written.
        """
        asked = [(sequences[TEACHER], length) for sequences, length in self._readers() if TEACHER in sequences]
        if not asked:
            return None
        tokens, length = max((sequences * length, length) for sequences, length in asked)
        return math.ceil(tokens / length), length

    def _readers(self) -> Iterator[tuple[dict[str, int], int]]:
        """Of each section how many sequences it reads of each dataset at most, and their length."""
        yield self.calibration.divided(self.calibration.sequences), self.calibration.length
        if self.distillation is not None:
            yield self.distillation.divided(self.distillation.windows), self.distillation.length

    def at(self, ratio: float) -> Self:
        """The recipe that makes one checkpoint of a sweep on its own."""
        return self.model_copy(update={"target_ratio": ratio})

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every field that names text to be had, such as 'calibration.datasets.0', and its dataset: all but TEACHER."""
        sections = {"calibration": self.calibration, "distillation": self.distillation, "evaluation": self.evaluation}
        for name, section in sections.items():
            for index, dataset in enumerate(section.datasets if section else ()):
                if dataset != TEACHER:
                    yield f"{name}.datasets.{index}", dataset

"""The types of a recipe's fields, and what each of them refuses, with the way out."""

import re
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidatorFunctionWrapHandler

from modelpress.spec.formats import FORMATS, MAIN

Item = TypeVar("Item", bound=Hashable)

HUB_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_./-]+)?")
LOCAL_NAME = re.compile(r"local:[^/\n].*")
TEACHER = "teacher:"
DATASET = re.compile(
    r"teacher:|upload_[0-9a-f]{24}|builtin:[A-Za-z0-9_-]+|local:[^/\n].*|"
    r"hub:[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+){1,2}"
)
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.()+-]{0,127}")
TEXTS = (
    "datasets to read: 'builtin:NAME', 'local:NAME', 'hub:org/name/config/split', the id of an upload, or 'teacher:' "
    "for text that the original generates, which takes minutes and needs memory for the whole original"
)


def pattern_of(*expressions: re.Pattern[str]) -> Any:
    """Return field information that shows in the JSON schema which strings the expressions match as a whole.

    It validates nothing: the message of a validator says more than that of a pattern.
    """
    either = "|".join(expression.pattern for expression in expressions)
    return Field(json_schema_extra={"pattern": f"^({either})$"})


def distinct(message: str) -> AfterValidator:
    """Return a validator that refuses a tuple in which an item is listed twice, with this message."""

    def check(items: tuple[Item, ...]) -> tuple[Item, ...]:
        if len(set(items)) < len(items):
            raise ValueError(message)
        return items

    return AfterValidator(check)


def check_model(reference: str) -> str:
    """Return the reference if it is a valid model reference; raise ValueError otherwise."""
    if HUB_MODEL.fullmatch(reference) or LOCAL_NAME.fullmatch(reference):
        return reference
    raise ValueError("send 'org/name', 'org/name@revision' or 'local:NAME'")


def check_dataset(reference: str) -> str:
    """Return the reference if it is a valid dataset reference; raise ValueError otherwise."""
    if DATASET.fullmatch(reference):
        return reference
    raise ValueError(
        "send 'builtin:NAME', 'local:NAME', 'hub:org/name/config/split', the id of an upload, or 'teacher:'"
    )


def check_evaluation_dataset(reference: str) -> str:
    """Return the reference; raise ValueError if it is `teacher:`."""
    if reference != TEACHER:
        return reference
    raise ValueError("text by the original itself is no independent test; send other text, such as 'local:NAME'")


def check_task(name: str) -> str:
    """Return the name if it can be a task's; raise ValueError otherwise."""
    # Only names: lm-eval also accepts a path, and would run the code there.
    if TASK.fullmatch(name):
        return name
    raise ValueError("send the name of a task of lm-eval, such as 'arc_easy', or of the operator's own")


def check_format(name: str) -> str:
    """Return the name if it is a format's; raise ValueError otherwise."""
    if name not in FORMATS:
        raise ValueError(f"send one of {', '.join(FORMATS)}")
    return name


def check_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats; raise ValueError if the main format is missing."""
    if MAIN not in formats:
        raise ValueError(f"{MAIN!r} is always written, so add it to the list")
    return formats


def check_ratio(ratio: float) -> float:
    """Return the ratio; raise ValueError unless it is above 1."""
    if ratio > 1:
        return ratio
    hint = f"send {1 / ratio:.3g}" if 0 < ratio < 1 else "send a number above 1, such as 1.5"
    raise ValueError(f"must be above 1, since it is bytes before / after; {hint}")


def check_target(target: Any, _: ValidatorFunctionWrapHandler) -> float | tuple[float, ...] | None:
    """Validate a list as ratios and anything else as one ratio, so that the error fits what was sent."""
    if target is None:
        return None
    if isinstance(target, list | tuple):
        return RATIOS.validate_python(target)
    return RATIO.validate_python(target)


Ratio = Annotated[
    float, Field(allow_inf_nan=False, json_schema_extra={"exclusiveMinimum": 1}), AfterValidator(check_ratio)
]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1, max_length=8), distinct("send each ratio once")]
RATIO: TypeAdapter[float] = TypeAdapter(Ratio)
RATIOS: TypeAdapter[tuple[float, ...]] = TypeAdapter(Ratios)
Device = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Model = Annotated[str, AfterValidator(check_model), pattern_of(HUB_MODEL, LOCAL_NAME)]
Dataset = Annotated[str, AfterValidator(check_dataset), pattern_of(DATASET)]
EvaluationDataset = Annotated[Dataset, AfterValidator(check_evaluation_dataset)]
Tasks = Annotated[
    tuple[Annotated[str, AfterValidator(check_task), pattern_of(TASK)], ...],
    Field(max_length=16),
    distinct("name each task once"),
]
FormatName = Annotated[str, AfterValidator(check_format), Field(json_schema_extra={"enum": list(FORMATS)})]
Formats = Annotated[
    tuple[FormatName, ...], Field(min_length=1), distinct("name each format once"), AfterValidator(check_formats)
]
Share = Annotated[int, Field(ge=1, le=1000)]
Mixture = Annotated[
    tuple[Dataset, ...],
    Field(min_length=1, max_length=8),
    distinct("name each dataset once; use `shares` to read more of one"),
]

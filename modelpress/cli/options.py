"""The options of `modelpress compress` that say a field of the recipe. `RECIPE_OPTIONS` is the only list of them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from modelpress.cli.recipes import pairs_of
from modelpress.spec.formats import FORMATS, MAIN
from modelpress.spec.methods import METHODS
from modelpress.spec.training import Trainable

AGAIN = "May be given more than once."
OTHER_FORMATS = tuple(name for name in FORMATS if name != MAIN)


@dataclass(frozen=True)
class RecipeOption:
    """A command-line option that says the `field` of the recipe, a dotted name; `value` is the type of its value."""

    flag: str
    field: str
    value: Any
    help: str
    metavar: str | None = None

    @property
    def parameter(self) -> str:
        """Return the name of the function's parameter that receives the value."""
        return self.flag.removeprefix("--").replace("-", "_")


RECIPE_OPTIONS: tuple[RecipeOption, ...] = (
    RecipeOption("--method", "method", str, f"How the model is made smaller: {', '.join(METHODS)}."),
    RecipeOption(
        "--method-option",
        "method",
        list[str],
        f"An option of the method, such as key_value_heads=2. {AGAIN}",
        "NAME=VALUE",
    ),
    RecipeOption("--bytes", "target_bytes", str, "Size of the weights, such as 1.5GB, instead of --ratio.", "SIZE"),
    RecipeOption(
        "--architecture",
        "architecture",
        str,
        "Models that are taken: registered, or inferred for those whose parts were found by structure, too.",
        "WHICH",
    ),
    RecipeOption("--precision", "precision", str, "The most bits that a weight may keep: 16, 8, 4 or auto.", "BITS"),
    RecipeOption(
        "--embedding-precision",
        "embedding_precision",
        str,
        "The same for embedding and output head; 16 leaves them unrounded, as vLLM needs it.",
        "BITS",
    ),
    RecipeOption("--calibration", "calibration.datasets", list[str], f"Text to fit the result to. {AGAIN}", "DATASET"),
    RecipeOption("--sequences", "calibration.sequences", int, "Number of calibration sequences."),
    RecipeOption("--length", "calibration.length", int, "Tokens per calibration sequence."),
    RecipeOption("--distill", "distillation.datasets", list[str], f"Text to train the result on. {AGAIN}", "DATASET"),
    RecipeOption("--distill-tokens", "distillation.tokens", int, "Number of tokens to train the result on."),
    RecipeOption("--learning-rate", "distillation.learning_rate", float, "Highest learning rate of that training."),
    RecipeOption("--trainable", "distillation.trainable", Trainable, "Which parameters of the result are trained."),
    RecipeOption("--evaluation", "evaluation.datasets", list[str], f"Text to measure on. {AGAIN}", "DATASET"),
    RecipeOption("--window", "evaluation.window", int, "Tokens per window that is measured."),
    RecipeOption("--max-tokens", "evaluation.max_tokens", int, "Tokens of each dataset to measure on, at most."),
    RecipeOption(
        "--max-perplexity-ratio",
        "evaluation.gate.max_perplexity_ratio",
        float,
        "Fail where the result's perplexity is more than this many times the original's.",
    ),
    RecipeOption(
        "--min-top1-agreement",
        "evaluation.gate.min_top1_agreement",
        float,
        "Fail where original and result agree on the most likely token less often than this, 0 to 1.",
    ),
    RecipeOption(
        "--baseline", "evaluation.baseline", bool, "Also measure the original with blocks dropped to the same size."
    ),
    RecipeOption("--task", "evaluation.tasks", list[str], f"Also ask both models this task of lm-eval. {AGAIN}"),
    RecipeOption("--task-limit", "evaluation.task_limit", int, "Examples of each task to ask, at most."),
    RecipeOption(
        "--format",
        "formats",
        list[str],
        f"Also write the result in this format ({', '.join(OTHER_FORMATS)}), in a directory of its name. {AGAIN}",
        "FORMAT",
    ),
    RecipeOption("--device", "device", str, "Workers that may compute it: cpu, gpu, or a label that some offer."),
    RecipeOption("--priority", "priority", int, "Jobs of the team with a higher number are computed first."),
    RecipeOption("--metadata", "metadata", list[str], f"A pair of yours, stored with the job. {AGAIN}", "KEY=VALUE"),
    RecipeOption("--seed", "seed", int, "Seed of everything random: two runs with one seed do the same."),
)


def take_options(command: Callable[..., None], options: Sequence[RecipeOption]) -> None:
    """Give the command a keyword parameter for each option, in the form in which typer reads them."""
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [_parameter(option) for option in options]
    command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]  # inspect reads it
    command.__annotations__ |= {parameter.name: parameter.annotation for parameter in added}


def _parameter(option: RecipeOption) -> inspect.Parameter:
    is_flag = option.value is bool
    declared = typer.Option(option.flag, metavar=option.metavar, help=option.help)
    annotation = Annotated[option.value if is_flag else option.value | None, declared]  # type: ignore[valid-type]  # a type made here
    default = False if is_flag else None
    return inspect.Parameter(option.parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def recipe_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the recipe that the given values say; an option that was left out says nothing.

    Raises Refused for an option of the method without a value.
    """
    fields: dict[str, Any] = {}
    for option in RECIPE_OPTIONS:
        value = values.get(option.parameter)
        if value is None or value is False or option.field == "method":
            continue
        *sections, name = option.field.split(".")
        place = fields
        for section in sections:
            place = place.setdefault(section, {})
        if option.field == "formats":
            value = [MAIN, *value]
        elif option.field == "metadata":
            value = pairs_of(value, "--metadata", "team=search")
        place[name] = value
    method = method_field(values.get("method"), values.get("method_option") or ())
    return fields if method is None else fields | {"method": method}


def method_field(name: str | None, options: Sequence[str]) -> dict[str, Any] | str | None:
    """Return the recipe's method from its name and options such as 'key_value_heads=2'; None where neither is given.

    Raises Refused for an option without a value.
    """
    if not options:
        return name
    return {"name": name or next(iter(METHODS)), **pairs_of(options, "--method-option", "key_value_heads=2")}

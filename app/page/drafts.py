"""A recipe as a form holds it: what was typed, what recipe that makes, and beside which field its faults belong."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, get_args

from pydantic import ValidationError

from app.api.validation import field_errors, refuse_unstorable
from modelpress.contract.distillation import Distillation
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from modelpress.spec.formats import MAIN
from modelpress.spec.precision import Precision

FIELDS: Final = ("model", "target_ratio", "target_bytes", "method", "formats", "precision", "distillation")
"""The fields of a recipe that have a place in the form; all others are typed as JSON."""
REST: Final = "more"
"""The field of the form for the JSON."""
PRECISIONS: Final = tuple(map(str, get_args(Precision)))
TRAINING_TOKENS: Final = (65_536, 262_144, 1_048_576)
LONGEST_FIELD = 512
LONGEST_REST = 60_000


class Faulty(Exception):
    """The form makes no recipe. `faults` has a message for each field of the form."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {message}" for name, message in faults.items()))
        self.faults = dict(faults)


@dataclass(frozen=True)
class Draft:
    """The fields of the form for a new job, as somebody has filled them in so far."""

    model: str = ""
    target_ratio: str = ""
    target_bytes: str = ""
    method: str = "auto"
    precision: str = "auto"
    formats: Sequence[str] = ()
    """The formats besides the main one."""
    distillation: bool = False
    tokens: str = str(TRAINING_TOKENS[1])
    more: str = ""

    @property
    def is_begun(self) -> bool:
        """Return whether there is enough to estimate: a model and a target."""
        return bool(self.model and (self.target_ratio or self.target_bytes or "target_" in self.more))

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the form of an earlier recipe; what it has beyond the form's fields goes into the JSON."""
        said = recipe.model_dump(mode="json", exclude_defaults=True)
        said.pop("method", None)
        ratio, method = said.pop("target_ratio", None), recipe.method.model_dump(mode="json", exclude_defaults=True)
        training: dict[str, Any] | None = said.pop("distillation", None)
        rest = {name: value for name, value in said.items() if name not in FIELDS}
        if method:
            rest["method"] = {"name": recipe.method.name} | method
        tokens = Distillation.model_fields["tokens"].default
        if training is not None:
            tokens = training.pop("tokens", tokens)
            if training:
                rest["distillation"] = training
        return cls(
            model=recipe.model,
            target_ratio=", ".join(f"{each:g}" for each in (ratio if isinstance(ratio, list) else [ratio]) if each),
            method=recipe.method.name,
            precision=str(recipe.precision),
            formats=[name for name in recipe.formats if name != MAIN],
            distillation=training is not None,
            tokens=str(tokens),
            more=json.dumps(rest, indent=2) if rest else "",
        )

    def recipe(self) -> Recipe:
        """Return the recipe that the form makes. What stands in the JSON goes before the other fields.

        Raises:
            Faulty: it makes none.
        """
        rest = self.rest()
        body: dict[str, Any] = {"model": self.model, "formats": [MAIN, *self.formats], "precision": self.precision}
        body["method"] = self.method
        if self.target_ratio:
            body["target_ratio"] = ratios(self.target_ratio)
        if self.target_bytes:
            body["target_bytes"] = self.target_bytes
        if self.distillation:
            body["distillation"] = {"tokens": self.tokens} | section(rest.pop("distillation", None))
        try:
            recipe = Recipe.model_validate(body | rest)
        except ValidationError as error:
            found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise Faulty(self.placed((each["field"], each["message"]) for each in field_errors(found))) from None
        try:
            refuse_unstorable(recipe)
        except Refused as fault:
            raise Faulty(self.placed([(fault.field, fault.message)])) from None
        return recipe

    def rest(self) -> dict[str, Any]:
        """Return the JSON of the form. Raises Faulty for what is no JSON object."""
        if not self.more.strip():
            return {}
        try:
            rest = json.loads(self.more)
        except ValueError as error:
            raise Faulty({REST: f"this is not valid JSON: {error}"}) from None
        except RecursionError:
            raise Faulty({REST: "this is nested too deeply"}) from None
        if not isinstance(rest, dict):
            raise Faulty({REST: 'send a JSON object, such as {"seed": 1}'})
        return rest

    def placed(self, faults: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the faults of a recipe by the field of the form beside which they belong."""
        found: dict[str, list[str]] = {}
        for name, message in faults:
            head = name.split(".")[0]
            is_shown = head in FIELDS and f'"{head}"' not in self.more
            found.setdefault(head if is_shown else REST, []).append(message if is_shown else f"{name}: {message}")
        return {name: "; ".join(messages) for name, messages in found.items()}


def ratios(text: str) -> Any:
    """Return the number that was typed, or a list of those between commas; what is no number is left as it is."""
    numbers = [each.strip() for each in text.replace("×", "").split(",") if each.strip()]
    return numbers[0] if len(numbers) == 1 else numbers


def section(value: Any) -> dict[str, Any]:
    """Return a section of a recipe that was typed as JSON; empty for what is none."""
    return value if isinstance(value, dict) else {}

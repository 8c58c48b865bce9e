"""Every architecture by every method in every format: compressed, written, and opened by a stranger.

`make test` takes one method and one format of each model, in turn; `make test-full` takes all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from modelpress.spec.formats import FORMATS
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, MethodDoesNotFit, MethodOptions, Need, PlanningMethod
from tests.support.models import MODELS, logits_of, open_tiny, token_ids
from tests.support.packages import Outcomes, verified
from workers.compression.formats import Writer, writer_of
from workers.compression.formats.verification import Probe, Verified
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress

BLOCKS = 3
RATIO = 1.2
TOKENS = 64
"""Training budget of a method that trains."""

PLANNING: dict[str, PlanningMethod[Any]] = {
    name: method for name, method in METHODS.items() if isinstance(method, PlanningMethod)
}
OPENED = {name: form for name, form in FORMATS.items() if writer_of(name).open_fresh is Writer.open_fresh}
"""The formats that transformers opens; tests of their own try those of other engines."""
EVERY = [f"{name}/{method}/{form}" for name in MODELS for method in PLANNING for form in OPENED]


@dataclass(frozen=True)
class Combination:
    """The method that compresses a model and the format that it is written in."""

    method: str
    form: str


def options_of(method: str) -> MethodOptions:
    """Return the method's options, with a small budget where it trains."""
    kind = PLANNING[method].options
    return kind(tokens=TOKENS) if method == "fusegpt" else kind()


def combinations(inventory: Inventory) -> Iterator[Combination]:
    """Yield what the methods and formats do not refuse on a model."""
    for form in OPENED.values():
        for name, method in PLANNING.items():
            try:
                method.range(inventory, options_of(name))
            except MethodDoesNotFit:
                continue
            if form.refuses(inventory, method.leaves) is None:
                yield Combination(name, form.name)


def parts_of(model: StreamedModel, method: str, ids: Tensor) -> list[CompressedPart]:
    """Return the parts of the model compressed by the method, as near to RATIO as it reaches."""
    planner, options = PLANNING[method], options_of(method)
    reached = planner.range(model.inventory, options)
    ratio = min(max(RATIO, reached.lowest), reached.highest)
    needed = Need.SENSITIVITIES in planner.needs
    measured = measure_all(model, ids, tiled=planner.tiled(options)) if needed else {}
    plan = planner.plan(model.inventory, ratio, options, site_errors(measured))
    parts: list[CompressedPart] = []
    for _ in compress(model, plan, ids, parts, sensitivities=measured):
        pass
    return parts


class Workshop:
    """Models and their parts, each made once; `probe` writes a package."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[str, StreamedModel] = {}
        self._parts: dict[tuple[str, str], list[CompressedPart]] = {}
        self._probes: dict[tuple[str, Combination], Probe] = {}

    def model(self, name: str) -> StreamedModel:
        if name not in self._models:
            self._models[name] = open_tiny(name, self.root / name, num_hidden_layers=BLOCKS)
        return self._models[name]

    def probe(self, name: str, chosen: Combination) -> Probe:
        """Return the written package with the logits that it should compute."""
        if (name, chosen) not in self._probes:
            self._probes[name, chosen] = self._written(name, chosen)
        return self._probes[name, chosen]

    def _written(self, name: str, chosen: Combination) -> Probe:
        key = (name, chosen.method)
        if key not in self._parts:
            self._parts[key] = parts_of(self.model(name), chosen.method, token_ids(sequences=8, length=16))
        edited = EditedModel(self.model(name), self._parts[key])
        place = self.root / "-".join((name, chosen.method, chosen.form))
        written = writer_of(chosen.form).write(edited.overlay, place).directory
        return Probe(written, token_ids(), logits_of(edited), FORMATS[chosen.form].tolerance)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def opened(names: tuple[str, ...], workshop: Workshop) -> Outcomes[Verified]:
    def probe(case: str) -> Probe:
        name, _, rest = case.partition("/")
        if rest:
            return workshop.probe(name, Combination(*rest.split("/")))
        fitting = list(combinations(workshop.model(name).inventory))
        return workshop.probe(name, fitting[MODELS.index(name) % len(fitting)])

    return verified(Outcomes([case for case in names if case.count("/") == 0 or fits(case, workshop)], probe))


def fits(case: str, workshop: Workshop) -> bool:
    """Return whether method and format of the case accept its model."""
    name, method, form = case.split("/")
    return Combination(method, form) in combinations(workshop.model(name).inventory)


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_computes_the_logits_of_what_a_method_left(name: str, opened: Outcomes[Verified]) -> None:
    assert opened[name].generated


@pytest.mark.full
@pytest.mark.parametrize("name", EVERY)
def test_so_it_does_for_every_method_and_format_that_take_the_model(
    name: str, opened: Outcomes[Verified], workshop: Workshop
) -> None:
    assert not fits(name, workshop) or opened[name].generated

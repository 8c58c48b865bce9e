"""The compression library as the experiments call it: one function to compress, one to train, one to judge."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.clock import timed
from bench.experiment import Strict
from bench.tqcompressor_style import tqcompressor_style
from modelpress.spec.families import KroneckerFamily
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, Need, planner_of
from modelpress.spec.methods.fusion import FUSION
from modelpress.spec.plan import Plan
from modelpress.spec.sizes import Candidate
from modelpress.spec.steps import Remove
from workers.compression.choice import trials
from workers.compression.evaluation.fidelity import compare
from workers.compression.math.sensitivity import Sensitivity, measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part

DROP = "drop"
"""Blocks removed by macro influence, the others left as they are: what depth pruning is measured against."""

TQCOMPRESSOR_STYLE = "tqcompressor-style"
"""TQCompressor's fit on every matrix of any model: Kronecker sums in the plain norm, without data."""


class Training(Strict):
    """Distillation of the whole compressed model, as in a recipe."""

    tokens: int = Field(gt=0)
    texts: tuple[str, ...] = Field(min_length=1, description="names of the experiment's texts, equally much of each")
    length: int = 512
    batch_size: int = 2
    learning_rate: float = 7e-5
    cross_entropy_weight: float = 0.5
    hidden_weight: float = 0.0
    trainable: Literal["all", "factors", "norms"] = "all"

    def settings(self) -> DistillationSettings:
        """Return the same as the library's settings. There is no checkpoint before the end."""
        return DistillationSettings(
            tokens=self.tokens,
            batch_size=self.batch_size,
            micro_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            trainable=self.trainable,
            cross_entropy_weight=self.cross_entropy_weight,
            hidden_weight=self.hidden_weight,
            interval=self.tokens,
        )


@dataclass
class Original:
    """A model to compress, and what it is calibrated on: token ids [sequences, length].

    Attributes:
        measuring: seconds that `sensitivities` took; 0 as long as nobody has asked for them.
    """

    model: StreamedModel
    ids: Tensor
    measuring: float = 0.0
    _measured: dict[KroneckerFamily | None, Mapping[str, Sensitivity]] = field(default_factory=dict)

    def sensitivities(self, tiled: KroneckerFamily | None) -> Mapping[str, Sensitivity]:
        """Return what an error at each site does to the model's output, measured once for all cases that ask alike.

        `tiled` are the Kronecker sums whose errors are measured, too.
        """
        if tiled not in self._measured:
            seconds: dict[str, float] = {}
            with timed(seconds, "measure"):
                self._measured[tiled] = measure_all(self.model, self.ids, tiled=tiled)
            self.measuring = seconds["measure"]
        return self._measured[tiled]


@dataclass(frozen=True)
class Compressed:
    """A model that a method compressed: `parts` over it, `chosen` by `auto`, and how long each step took."""

    original: Original
    parts: tuple[CompressedPart, ...]
    seconds: Mapping[str, float]
    chosen: str | None = None

    def model(self) -> EditedModel:
        """Return the compressed model."""
        return EditedModel(self.original.model, self.parts)

    @property
    def ratio(self) -> float:
        """Stored parameters before / after."""
        return self.original.model.inventory.total_parameters / self.model().inventory.total_parameters

    @property
    def removed(self) -> tuple[int, ...]:
        """The blocks that are gone, in the order in which they went."""
        return tuple(block for part in self.parts for block in part.removed)


def compressed(original: Original, method: str, ratio: float, options: Mapping[str, Any]) -> Compressed:
    """Compress the original by a method of the library, by DROP or by TQCOMPRESSOR_STYLE.

    Args:
        original: the model and its calibration text.
        method: its name in a recipe, or one of the two above.
        ratio: stored parameters before / after.
        options: those that a recipe would give the method.

    Raises:
        RatioOutOfRange: the method cannot reach the ratio.
        KeyError: there is no such method.
    """
    seconds: dict[str, float] = {}
    if method == TQCOMPRESSOR_STYLE:
        with timed(seconds, "fit"):
            return Compressed(original, (tqcompressor_style(original.model, ratio),), seconds)
    if method == DROP:
        return _carried_out(original, dropping(original.model.inventory, ratio), {}, seconds)
    asked = METHODS[method].options.model_validate(dict(options))
    chosen = asked
    if Need.TRIALS in METHODS[method].needs:
        with timed(seconds, "choose"):
            found = METHODS[method].candidates(original.model.inventory, ratio, asked)
            tried = list(trials(original.model, [Candidate(each, ratio, 16) for each in found], original.ids))
        chosen = min(tried, key=lambda trial: trial.perplexity).candidate.method
    planner = planner_of(chosen)
    measured = original.sensitivities(planner.tiled(chosen)) if Need.SENSITIVITIES in planner.needs else {}
    if measured:
        seconds["measure"] = original.measuring
    plan = planner.plan(original.model.inventory, ratio, chosen, site_errors(measured))
    result = _carried_out(original, plan, measured, seconds)
    return result if chosen is asked else dataclasses.replace(result, chosen=chosen.name)


def _carried_out(
    original: Original, plan: Plan, sensitivities: Mapping[str, Sensitivity], seconds: dict[str, float]
) -> Compressed:
    parts: list[CompressedPart] = []
    with timed(seconds, "fit"):
        for _ in compress(original.model, plan, original.ids, parts, sensitivities=sensitivities):
            pass
    return Compressed(original, tuple(parts), seconds)


def dropping(inventory: Inventory, ratio: float) -> Plan:
    """Return the plan that removes as many blocks as `fusion` would, by macro influence, and does nothing else."""
    fusion = FUSION.plan(inventory, ratio, FUSION.options(criterion="macro_influence"), {})
    removals = tuple(step for step in fusion.steps if isinstance(step, Remove))
    return fusion.model_copy(update={"method": DROP, "steps": removals})


def trained(
    student: Compressed, text: Tensor, training: Training, judged_at: int, judge: Callable[[int, EditedModel], None]
) -> None:
    """Distil the compressed model on windows [N, length] of text, and judge it on the way.

    `judge` is called `judged_at` times with the tokens trained on so far and the model as it then is, at equal
    distances, for the last time at the end.
    """
    edited = student.model()
    teacher = student.original.model.whole()
    pupil: Any = edited.whole()
    pupil.float()
    settings = training.settings()
    steps = settings.steps(training.length)

    class Judge(Observer):
        def on_step(self, step: int, loss: float, restarts: int) -> None:
            if step * judged_at // steps > (step - 1) * judged_at // steps:
                print(f"    step {step} of {steps}: loss {loss:.3f}", flush=True)
                part = trained_part(edited, dict(pupil.named_parameters()))
                judge(step * training.batch_size * training.length, EditedModel(edited, [part]))

    dtype = student.original.model.dtype
    distil(teacher, pupil, text, settings, compute_dtype=None if dtype == torch.float32 else dtype, observer=Judge())


def perplexities(model: StreamedModel, texts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the model's perplexity on each text, windows [N, length]."""
    return {name: compare(model, (), windows)[0].perplexity for name, windows in texts.items()}

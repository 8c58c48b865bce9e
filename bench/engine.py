"""The compression library as the experiments call it: one function to compress, one to train, one to judge."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.clock import timed
from bench.experiment import Strict
from bench.tqcompressor_style import tqcompressor_style
from workers.compression.choice import trials
from workers.compression.evaluation.fidelity import compare
from workers.compression.math.allocation import measured_plan
from workers.compression.math.sensitivity import Sensitivity, measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.spec.catalog import is_measured
from workers.compression.spec.sizes import resized_plan
from workers.compression.training.settings import Settings
from workers.compression.training.trained import trained_part
from workers.compression.training.training import distil

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

    def settings(self) -> Settings:
        """Return the same as the library's settings. There is no checkpoint before the end."""
        return Settings(
            tokens=self.tokens,
            sequences=self.batch_size,
            micro_batch=self.batch_size,
            rate=self.learning_rate,
            train=self.trainable,
            cross_entropy=self.cross_entropy_weight,
            hidden=self.hidden_weight,
            interval=self.tokens,
        )


@dataclass
class Original:
    """A model to compress, what it is calibrated on, and what was measured on that, once for all cases.

    `ids` are token ids [sequences, length].
    """

    model: StreamedModel
    ids: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    _measured: Mapping[str, Sensitivity] | None = None

    def sensitivities(self) -> Mapping[str, Sensitivity]:
        """Return what an error at each site does to the model's output; measured at the first call, and timed."""
        if self._measured is None:
            with timed(self.seconds, "measure"):
                parts = list(measure(self.model, self.ids))
            self._measured = {name: found for part in parts for name, found in part.items()}
        return self._measured


@dataclass(frozen=True)
class Compressed:
    """What a method made of the original: `parts` over it, `chosen` by `auto`, and how long each step took."""

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


def compressed(original: Original, method: str, ratio: float, options: Mapping[str, int]) -> Compressed:
    """Compress the original by a method of the library, by DROP or by TQCOMPRESSOR_STYLE.

    Args:
        original: the model and its calibration text.
        method: its name in a recipe, or one of the two above.
        ratio: stored parameters before / after.
        options: those of the method: `key_value_heads` of width, `tokens` of fusion.

    Raises:
        RatioOutOfRange: the method cannot reach the ratio.
    """
    seconds: dict[str, float] = {}
    chosen = None
    if method == "auto":
        with timed(seconds, "choose"):
            tried = list(trials(original.model, ratio, original.ids))
        method = chosen = min(tried, key=lambda trial: trial.perplexity).method
    weights = original.sensitivities() if is_measured(method) else {}
    with timed(seconds, "fit"):
        parts = tuple(_parts(original, method, ratio, options, weights))
    return Compressed(original, parts, original.seconds | seconds if weights else seconds, chosen)


def _parts(
    original: Original, method: str, ratio: float, options: Mapping[str, int], weights: Mapping[str, Sensitivity]
) -> Iterator[CompressedPart]:
    model, inventory = original.model, original.model.inventory
    if method == TQCOMPRESSOR_STYLE:
        yield tqcompressor_style(model, ratio)
    elif method == DROP:
        plan = dataclasses.replace(resized_plan(inventory, "fusion", ratio), criterion="macro_influence")
        yield from islice(compress(model, plan, original.ids), plan.removed)
    else:
        plan = measured_plan(inventory, method, ratio, weights, options.get("key_value_heads"))
        plan = dataclasses.replace(plan, absorption_tokens=options.get("tokens", 0))
        yield from compress(model, plan, original.ids, sensitivities=weights)


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

    def told(step: int, loss: float) -> None:
        if step * judged_at // steps > (step - 1) * judged_at // steps:
            print(f"    step {step} of {steps}: loss {loss:.3f}", flush=True)
            part = trained_part(edited, dict(pupil.named_parameters()), len(student.parts))
            judge(step * training.batch_size * training.length, EditedModel(edited, [part]))

    dtype = student.original.model.dtype
    compute = None if dtype == torch.float32 else dtype
    for _ in distil(teacher, pupil, text, settings, compute_dtype=compute, told=told):
        pass


def perplexities(model: StreamedModel, texts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the model's perplexity on each text, windows [N, length]."""
    return {name: compare(model, (), windows)[0].perplexity for name, windows in texts.items()}

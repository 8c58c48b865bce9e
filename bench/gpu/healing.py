"""A long distillation of SmolLM2-135M, as many tokens as fit into the time, with its curve.

The texts are State of the Union, WikiText-2 and text that the original writes itself, equally much of each; the
inaugural addresses, of which nothing is trained on, judge.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from bench.gpu.work import Compressed, compressed_by
from bench.race import now
from workers.compression.evaluation.fidelity import compare
from workers.compression.models.decoding import decoding
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part

TRAINED_ON = ("state-of-the-union", "wikitext2-valid")
JUDGE = "inaugural-addresses"


@dataclass(frozen=True)
class Recipe:
    """A compression to heal, and the highest learning rate of its training."""

    name: str
    method: str
    ratio: float
    learning_rate: float


RECIPES = (
    Recipe("1.27", "width_low_rank", 1.27, 3e-4),
    Recipe("2", "width_low_rank", 2.0, 6e-4),
)
"""What is healed. 4 times fewer bytes are 2 times fewer parameters here, to be rounded to 8 bits afterwards: training
does not feel the rounding yet."""

RATE_STEPS = 6
"""Steps by which the speed is estimated."""

WORKING = 0.8
"""Share of the time that is trained in; the rest goes to compression, estimating and judging."""


class Curve(Observer):
    """Notes the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        self.losses.append(loss)


def heal(setting: Setting, seconds: float = 360.0) -> Figures:
    """Compress and distil by every recipe, in equal shares of the time; write the curves beside the results."""
    found: Figures = {}
    recipes = RECIPES if setting.weights else tuple(replace(each, ratio=1.5) for each in RECIPES[:1])
    model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    teacher = model.whole()
    text = torch.cat(list(_texts(setting, model)))
    curves = {}
    for recipe in recipes:
        begun = now()
        made = compressed_by(model, recipe.method, recipe.ratio, text[:: max(1, len(text) // 64)])
        before = _judged(setting, model, made.edited(setting.device, setting.dtype))
        curve, last, edited = _distilled(setting, made, teacher, text, recipe, begun + seconds / len(recipes))
        edited.apply(trained_part(edited, last.trained))
        after = _judged(setting, model, edited)
        curves[recipe.name] = {"losses": curve.losses, "tokens": last.tokens}
        found |= {
            f"{recipe.name}_tokens": last.tokens,
            f"{recipe.name}_seconds": now() - begun,
            f"{recipe.name}_divergence_before": before,
            f"{recipe.name}_divergence_after": after,
        }
    if setting.out is not None:
        (setting.out / "healing.json").write_text(json.dumps(curves))
    return found


def _texts(setting: Setting, model: StreamedModel) -> Iterator[Tensor]:
    """Yield windows [n, length] of each text, equally many."""
    _, length = setting.sizes.batch
    vocabulary = model.inventory.vocab_size
    counts = [len(setting.texts[name]) // length for name in TRAINED_ON if name in setting.texts]
    count = min(counts, default=2 * setting.sizes.batch[0])
    for name in TRAINED_ON:
        yield setting.windows(count, length, vocabulary, text=name)
    yield _written(model, min(count, setting.sizes.written), length)


@torch.inference_mode()
def _written(model: StreamedModel, count: int, length: int) -> Tensor:
    """Return windows [count, length] that the original writes itself, each from a random token on."""
    generator = torch.Generator().manual_seed(0)
    whole, vocabulary = model.whole(), model.inventory.vocab_size
    tokens = [torch.randint(vocabulary, (count,), generator=generator).to(model.device)]
    torch.manual_seed(0)
    with decoding(whole) as decode:
        while len(tokens) < length:
            tokens.append(decode(tokens[-1]).float().softmax(-1).multinomial(1).flatten())
    return torch.stack(tokens, dim=1).cpu()


def _distilled(
    setting: Setting, made: Compressed, teacher: PreTrainedModel, text: Tensor, recipe: Recipe, deadline: float
) -> tuple[Curve, TrainingCheckpoint, EditedModel]:
    """Train for as many tokens as are likely to fit before the deadline."""
    batch, length = setting.sizes.batch
    compute = setting.dtype if setting.device.type == "cuda" else None
    edited = made.edited(setting.device, torch.float32)
    settings = DistillationSettings(
        tokens=RATE_STEPS * batch * length,
        batch_size=batch,
        learning_rate=recipe.learning_rate,
        cross_entropy_weight=0.5,
        interval=10**9,
    )
    seconds = []
    for _ in range(2):
        started = now()
        distil(teacher, edited.whole(), text, settings, compute_dtype=compute)
        seconds.append(now() - started)
    rate = settings.tokens / seconds[-1]
    left = (deadline - now()) * WORKING
    steps = max(1, int(left * rate / (batch * length)))
    curve = Curve()
    long = replace(settings, tokens=steps * batch * length)
    return curve, distil(teacher, edited.whole(), text, long, compute_dtype=compute, observer=curve), edited


def _judged(setting: Setting, model: StreamedModel, edited: EditedModel) -> float:
    """Return the divergence on the text that judges, in nats per token."""
    _, length = setting.sizes.calibration
    windows = setting.windows(setting.sizes.judged, length, model.inventory.vocab_size, text=JUDGE)
    _, found = compare(model, [edited], windows)
    return found.divergence

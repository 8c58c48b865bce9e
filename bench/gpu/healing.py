"""A long distillation of SmolLM2-135M, as many tokens as fit into the time, with its curve.

The texts are State of the Union, WikiText-2 and text that the original writes itself, equally much of each; the
inaugural addresses, of which nothing is trained on, judge. A recipe that rounds is trained as the service trains it:
first what is left of the structure, then what the rounded matrices store as floating-point numbers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from bench.gpu.work import Compressed, compressed_by
from bench.race import now
from modelpress.spec.codes import CODES
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods.auto import AutoOptions
from modelpress.spec.precision import Limits
from modelpress.spec.rounding import Budget, choose_codes
from modelpress.spec.sizes import Wanted, bytes_before, bytes_of, candidates, choices, matrices, reachable
from modelpress.spec.steps import Quantise
from workers.compression.evaluation.fidelity import compare
from workers.compression.math.sensitivity import measure_all
from workers.compression.models.decoding import decoding
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps import RUNNERS
from workers.compression.steps.code_costs import code_costs
from workers.compression.steps.work import Work
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.rounded import rounded_student, tuned_part
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part

TRAINED_ON = ("state-of-the-union", "wikitext2-valid")
JUDGE = "inaugural-addresses"

FORMAT = FORMATS["gguf"]
"""The format for which a recipe rounds."""

STRUCTURE = ("width_low_rank", 1.27)
"""Method and ratio of parameters of the recipe that leaves every weight at 16 bits."""

BYTES = 4.0
"""Ratio of bytes of the recipe that rounds. A tiny model comes less far."""

RATES = {"structure": 3e-4, "rounded": 1e-4}
"""Highest learning rates."""

RATE_STEPS = 6
"""Steps by which the speed is estimated."""

WORKING = 0.8
"""Share of the time that is trained in; the rest goes to rounding, estimating and judging."""

BEFORE_ROUNDING = 0.5
"""Share of a recipe's time, of that which is left behind the compression, after which its structure is rounded."""

NOTED = 20
"""Steps after which the curve is written anew."""


@dataclass
class Healing:
    """A recipe while it is carried out: what it has to work with, and its figures, which begin with its name.

    Attributes:
        deadline: when it is to be done, on the clock of `now`.
        curves: the losses of all trainings so far, by recipe and training.
    """

    name: str
    setting: Setting
    model: StreamedModel
    teacher: PreTrainedModel
    text: Tensor
    found: Figures
    deadline: float
    curves: dict[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> Tensor:
        """The windows by which the model is compressed."""
        return self.text[:: max(1, len(self.text) // 64)]

    def note(self, figures: Mapping[str, float]) -> None:
        """Add figures of this recipe."""
        self.found.add({f"{self.name}_{figure}": value for figure, value in figures.items()})

    def judge(self, when: str, edited: EditedModel) -> None:
        """Note the divergence on the text that judges, in nats per token."""
        _, length = self.setting.sizes.calibration
        windows = self.setting.windows(self.setting.sizes.judged, length, self.model.inventory.vocab_size, text=JUDGE)
        _, found = compare(self.model, [edited], windows)
        self.note({f"divergence_{when}": found.divergence})

    def write_curves(self) -> None:
        """Write the curves beside the results."""
        if self.setting.out is not None:
            (self.setting.out / "healing.json").write_text(json.dumps(self.curves))


class Curve(Observer):
    """Notes the loss of every step."""

    def __init__(self, healing: Healing, training: str) -> None:
        self.healing = healing
        self.losses: list[float] = []
        healing.curves[f"{healing.name}_{training}"] = self.losses

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        self.losses.append(loss)
        if step % NOTED == 0:
            self.healing.write_curves()


def heal(setting: Setting, found: Figures, seconds: float = 360.0) -> None:
    """Compress and distil by both recipes, in equal shares of the time; write the curves beside the results."""
    begun = now()
    model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    teacher = model.whole()
    text = torch.cat(list(_texts(setting, model)))
    found["seconds_for_the_text"] = now() - begun
    each = (seconds - (now() - begun)) / 2
    curves: dict[str, Any] = {}
    for name, recipe in (("1.27", _without_rounding), ("4", _with_rounding)):
        begun = now()
        healing = Healing(name, setting, model, teacher, text, found, begun + each, curves)
        recipe(healing)
        healing.write_curves()
        healing.note({"seconds": now() - begun})


def _without_rounding(healing: Healing) -> None:
    """Compress to fewer parameters, and train all that are left."""
    method, ratio = STRUCTURE
    ratio = ratio if healing.setting.weights else healing.setting.sizes.ratio
    made = compressed_by(healing.model, method, ratio, healing.calibration)
    _train_structure(healing, made, healing.deadline)


def _with_rounding(healing: Healing) -> None:
    """Compress to a fourth of the bytes as the service does it: structure, training, rounding, training."""
    inventory, options = healing.model.inventory, AutoOptions()
    highest = reachable(inventory, options, Wanted(BYTES, "auto", (FORMAT,))).highest
    wanted = Wanted(min(BYTES, 0.98 * highest), "auto", (FORMAT,))
    chosen = candidates(inventory, options, wanted)[0]
    healing.note({"ratio": wanted.ratio, "ratio_of_the_structure": chosen.structure})
    parts = EditedModel(healing.model)
    if chosen.structure > 1:
        given = chosen.method.model_dump(exclude={"name"})
        made = compressed_by(healing.model, chosen.method.name, chosen.structure, healing.calibration, options=given)
        middle = now() + BEFORE_ROUNDING * (healing.deadline - now())
        parts = _train_structure(healing, made, middle)
    edited = _rounded(healing, parts, wanted.ratio)
    healing.judge("rounded", edited)
    last, student = _trained(healing, "rounded", lambda: rounded_student(edited), healing.deadline)
    edited.apply(tuned_part(edited, student, last.trained))
    healing.judge("after", edited)


def _train_structure(healing: Healing, made: Compressed, until: float) -> EditedModel:
    """Train all weights of a compressed model until a time, and return it with what was trained."""
    setting = healing.setting
    healing.judge("before", made.edited(setting.device, setting.dtype))
    edited = made.edited(setting.device, torch.float32)
    last, _ = _trained(healing, "structure", edited.whole, until)
    edited.apply(trained_part(edited, last.trained))
    healing.judge("structure", edited)
    return edited


def _rounded(healing: Healing, edited: EditedModel, ratio: float) -> EditedModel:
    """Return the model with every matrix in the code that pays, in as many bytes as the ratio leaves; in float32."""
    inventory, ids, limits = edited.inventory, healing.calibration, Limits()
    measured = measure_all(edited, ids)
    offered = {site.name: choices(FORMAT, inventory, site, limits) for site in matrices(inventory)}
    costs = {name: cost for part in code_costs(edited, ids, measured, offered) for name, cost in part.items()}
    budget = Budget(int(bytes_before(healing.model.inventory) / ratio))
    codes = choose_codes(inventory, FORMAT, limits, costs, budget)
    size = bytes_of(inventory, lambda site: CODES[codes[site.name]] if site.name in codes else None)
    healing.note({"bytes_before_over_after": bytes_before(healing.model.inventory) / size})
    step = Quantise(format=FORMAT.name, codes=codes)
    for part in RUNNERS[Quantise].run(step, Work(healing.model, edited, ids, measured), ()):
        edited.apply(part)
    return edited


def _trained(
    healing: Healing, training: str, student: Callable[[], PreTrainedModel], until: float
) -> tuple[TrainingCheckpoint, PreTrainedModel]:
    """Train a student for as many tokens as are likely to fit before a time; return the last state, and the student."""
    setting = healing.setting
    batch, length = setting.sizes.batch
    compute = setting.dtype if setting.device.type == "cuda" else None
    few = DistillationSettings(
        tokens=RATE_STEPS * batch * length,
        batch_size=batch,
        learning_rate=RATES[training],
        cross_entropy_weight=0.5,
        interval=10**9,
    )
    seconds = []
    for _ in range(2):
        tried = student()
        started = now()
        distil(healing.teacher, tried, healing.text, few, compute_dtype=compute)
        seconds.append(now() - started)
        del tried
    rate = few.tokens / seconds[-1]
    steps = max(1, int((until - now()) * WORKING * rate / (batch * length)))
    curve, trained = Curve(healing, training), student()
    long = replace(few, tokens=steps * batch * length)
    last = distil(healing.teacher, trained, healing.text, long, compute_dtype=compute, observer=curve)
    healing.note({f"{training}_tokens": last.tokens, f"{training}_tokens_per_second": rate})
    return last, trained


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

"""How a model predicts when bits and structure bring a whole file to a ratio of bytes, beside llama.cpp's own mixes.

A case of ours takes the original through what a job does: structure, if it asks for some, then a code for each matrix
under the budget that the ratio leaves, then rounding. A mix is what llama.cpp's quantiser makes of the same original,
with an importance matrix from the same text. Each is judged by its divergence from the original.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from gguf import GGUFReader
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bench.clock import timed
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from bench.in_llama_cpp import Judged, Reference
from bench.llama_mixes import Importance, measured_importance, write_mix
from bench.models import RESCALED, model_directory
from bench.texts import Piece, all_windows
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods import METHODS, planner_of
from modelpress.spec.plan import Plan
from modelpress.spec.precision import PLAIN_BITS, Limits, Precision
from modelpress.spec.rounding import Budget, Costs, choose_codes
from modelpress.spec.sizes import bytes_before, choices, matrices
from modelpress.spec.steps import Quantise
from workers.compression.drawing import evenly_spread
from workers.compression.evaluation.fidelity import compare
from workers.compression.formats import writer_of
from workers.compression.formats.gguf.opening import FILE
from workers.compression.math.sensitivity import Sensitivity, measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress
from workers.compression.steps.code_costs import code_costs
from workers.compression.training.distillation import distil
from workers.compression.training.rounded import rounded_student, tuned_part
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part
from workers.stages.training import ROUNDED_SHARE


class Structure(Strict):
    """A method that comes before rounding, and the ratio of parameters that it is to reach."""

    method: str
    ratio: float = Field(gt=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Training(Strict):
    """A distillation, divided between structure and the rounded model as a job divides it."""

    text: Piece
    tokens: int = 262_144
    length: int = 512


class Rounding(Case):
    """One way to a file of a size."""

    ratio: float = Field(gt=1, description="bytes of the weights at 16 bits / bytes of the file")
    format: str = "gguf"
    precision: Precision = "auto"
    embedding_precision: Precision = "auto"
    structure: Structure | None = None
    training: Training | None = None

    @property
    def limits(self) -> Limits:
        """The most bits that weights may keep."""
        return Limits(self.precision, self.embedding_precision)


class Mix(Case):
    """A file of llama.cpp's quantiser."""

    mix: str = Field(description="such as Q4_K_M")


class Rounded(Row):
    """The result of one case.

    `in_weights` is judged with the weights that the file stands for, in 32 bits; `in_engine` by llama.cpp, which
    rounds activations, too.
    """

    ratio: float = Field(description="as reached")
    bytes: int = Field(description="of the file, all that it holds besides weights included")
    predicted: float | None = Field(None, description="divergence that the costs of the codes add up to, nats a token")
    in_weights: Judged | None = None
    in_engine: Judged | None = None
    untuned: Judged | None = Field(None, description="the weights before the rounded model was trained")
    codes: dict[str, int] = Field({}, description="matrices in each code")
    seconds: dict[str, float] = Field({}, description="that each step took; what an earlier case measured takes none")


class Bits(Experiment[Rounding | Mix, Rounded]):
    """Divergence at a ratio of bytes."""

    row: ClassVar[type[Row]] = Rounded

    kind: Literal["bits"]
    model: str = RESCALED
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the model while it is compressed")
    calibration: Piece
    sequences: int = 32
    judged: Piece
    windows: int = 8
    length: int = 1024

    def measure(self, cases: Sequence[Rounding | Mix], place: Place) -> Iterator[Rounded]:
        """Compress and judge each case; the original is judged in float32."""
        directory = model_directory(self.model, place.scratch)
        tokenizer = AutoTokenizer.from_pretrained(directory)

        texts = Texts(tokenizer, place.data)
        ids = texts.some(self.calibration, self.sequences, self.length)
        windows = texts.some(self.judged, self.windows, self.length)
        model = StreamedModel.open(directory, dtype=getattr(torch, self.dtype))
        exact = StreamedModel.open(directory, dtype=torch.float32)
        judges = _Judges(exact, windows, place.scratch)
        ours, theirs = Ours(model, exact, ids, texts), _LlamaCpp(model, ids)
        for case in cases:
            yield theirs.rounded(case, judges) if isinstance(case, Mix) else _rounded(case, ours, judges)

    def table(self, rows: Sequence[Rounded]) -> Table:
        """Return a row for each case."""
        return Table(
            (
                "file", "times smaller", "MB", "KL in llama.cpp", "perplexity", "same first token",
                "KL of its weights", "untrained", "predicted", "matrices in each code",
            ),
            tuple(
                (
                    row.case,
                    f"{row.ratio:.2f}",
                    f"{row.bytes / 1e6:.1f}",
                    *_figures(row),
                    "" if row.untuned is None else f"{row.untuned.divergence:.4f}",
                    "" if row.predicted is None else f"{row.predicted:.4f}",
                    ", ".join(f"{count} {code}" for code, count in row.codes.items()),
                )
                for row in rows
            ),
        )  # fmt: skip


def _figures(row: Rounded) -> tuple[str, str, str, str]:
    """Return the engine's divergence, perplexity and agreement, and the weights' divergence."""
    seen = row.in_engine or row.in_weights
    assert seen is not None, "every row is judged"
    return (
        "" if row.in_engine is None else f"{row.in_engine.divergence:.4f}",
        f"{seen.perplexity:.3f}",
        f"{seen.agreement:.3f}",
        "" if row.in_weights is None else f"{row.in_weights.divergence:.4f}",
    )


class _Judges:
    """Compare models with the original, by their weights and in llama.cpp, on the same windows."""

    def __init__(self, exact: StreamedModel, windows: Tensor, scratch: Path) -> None:
        self.exact, self.windows, self.scratch = exact, windows, scratch
        self._reference: Reference | None = None

    @property
    def bytes_before(self) -> int:
        """The bytes of the original at 16 bits a number."""
        return bytes_before(self.exact.inventory)

    def in_weights(self, parts: Sequence[CompressedPart]) -> Judged:
        """Judge the original with parts laid over it."""
        before, after = compare(self.exact, [EditedModel(self.exact, parts)], self.windows)
        return Judged(
            divergence=after.divergence,
            perplexity=after.perplexity / before.perplexity,
            agreement=after.agreement,
        )

    def in_engine(self, file: Path) -> Judged:
        """Judge a GGUF file in llama.cpp."""
        if self._reference is None:
            self._reference = Reference.of(self.exact, self.windows, self.scratch / "reference.npy")
        return self._reference.judged(file)


def _rounded(case: Rounding, ours: "Ours", judges: _Judges) -> Rounded:
    """Compress the model as a case of ours says, write it, and judge it."""
    made = ours.made(case)
    untuned = None
    if case.training is not None:
        untuned = judges.in_weights(made.parts)
        ours.tune(made, case.training)
    overlay = EditedModel(ours.model, made.parts).overlay
    with tempfile.TemporaryDirectory(dir=judges.scratch) as scratch:
        written = writer_of(case.format).write(overlay, Path(scratch) / "written")
        in_engine = judges.in_engine(written.directory / FILE) if case.format == "gguf" else None
    return Rounded(
        case=case.name,
        ratio=judges.bytes_before / written.bytes,
        bytes=written.bytes,
        predicted=made.predicted,
        in_weights=judges.in_weights(made.parts),
        in_engine=in_engine,
        untuned=untuned,
        codes=dict(Counter(made.codes.values())),
        seconds=made.seconds,
    )


@dataclass(frozen=True)
class Texts:
    """Windows of token ids from the files of the data directory."""

    tokenizer: PreTrainedTokenizerBase
    data: Path

    def every(self, piece: Piece, length: int) -> Tensor:
        """Return all windows [N, length] of a piece."""
        found = all_windows(self.tokenizer, piece.read(self.data), length)
        return found[int(piece.start * len(found)) : int(piece.stop * len(found))]

    def some(self, piece: Piece, count: int, length: int) -> Tensor:
        """Return `count` windows [count, length] that are spread over a piece."""
        return evenly_spread(self.every(piece, length), count)


class _LlamaCpp:
    """llama.cpp's quantiser, with an importance matrix of one model on one text."""

    def __init__(self, model: StreamedModel, ids: Tensor) -> None:
        self._model, self._ids = model, ids

    @cached_property
    def _importance(self) -> Importance:
        return measured_importance(self._model, self._ids)

    def rounded(self, case: Mix, judges: _Judges) -> Rounded:
        """Round the model to a mix, and judge its file."""
        with tempfile.TemporaryDirectory(dir=judges.scratch) as scratch:
            plain = writer_of("gguf").write(self._model.overlay, Path(scratch) / "plain").directory / FILE
            file = Path(scratch) / FILE
            write_mix(plain, file, case.mix, self._importance)
            size, in_engine = file.stat().st_size, judges.in_engine(file)
            rounded = (tensor for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1)
            codes = dict(Counter(tensor.tensor_type.name.lower() for tensor in rounded))
        return Rounded(case=case.name, ratio=judges.bytes_before / size, bytes=size, in_engine=in_engine, codes=codes)


@dataclass
class Made:
    """A model that one case has compressed.

    Attributes:
        parts: everything that lies over the original.
        codes: the code of each rounded matrix.
        predicted: divergence that the codes' costs add up to.
        seconds: how long each step took.
    """

    parts: list[CompressedPart] = field(default_factory=list)
    codes: Mapping[str, str] = field(default_factory=dict)
    predicted: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


class Ours:
    """Takes a model through what a job does. The unchanged model is measured once for all cases."""

    def __init__(self, model: StreamedModel, exact: StreamedModel, ids: Tensor, texts: Texts) -> None:
        self.model = model
        self._exact, self._ids, self._texts = exact, ids, texts
        self._sensitivities: Mapping[str, Sensitivity] | None = None
        self._costs: dict[tuple[str, Limits], Costs] = {}

    def made(self, case: Rounding) -> Made:
        """Carry out the structure of a case, train it if it is to be trained, and round what it leaves."""
        made, form = Made(), FORMATS[case.format]
        if case.structure is not None:
            with timed(made.seconds, "structure"):
                self._carry_out(made, _structural(case.structure, self.model), self.model, {})
            if case.training is not None:
                tokens = int(case.training.tokens * (1 - ROUNDED_SHARE))
                edited = EditedModel(self._exact, made.parts)
                with timed(made.seconds, "training"):
                    trained = self._train(edited.whole(), case.training, tokens)
                made.parts.append(trained_part(edited, trained))
        if case.precision == PLAIN_BITS:
            return made
        edited = EditedModel(self.model, made.parts)
        with timed(made.seconds, "measure"):
            sensitivities, costs = self._measured(case, edited)
        overhead = writer_of(form.name).overhead(edited.overlay)
        budget = Budget(int(bytes_before(self.model.inventory) / case.ratio) - overhead)
        made.codes = choose_codes(edited.inventory, form, case.limits, costs, budget)
        made.predicted = sum(costs[site][code] for site, code in made.codes.items())
        with timed(made.seconds, "round"):
            step = Quantise(format=form.name, codes=made.codes)
            plan = Plan(method="quantisation", steps=(step,), parameters_before=1, parameters_after=1)
            self._carry_out(made, plan, edited, sensitivities)
        return made

    def tune(self, made: Made, training: Training) -> None:
        """Train the rounded model, and lay what was trained over it."""
        share = ROUNDED_SHARE if "training" in made.seconds else 1.0
        edited = EditedModel(self._exact, made.parts)
        student = rounded_student(edited)
        with timed(made.seconds, "tuning"):
            trained = self._train(student, training, int(training.tokens * share))
        made.parts.append(tuned_part(edited, student, trained))

    def _train(self, student: PreTrainedModel, training: Training, tokens: int) -> Mapping[str, Tensor]:
        """Return the trained parameters of a student."""
        windows = self._texts.every(training.text, training.length)
        dtype = None if self.model.dtype == torch.float32 else self.model.dtype
        return distil(
            self.model.whole(), student, windows, DistillationSettings(tokens=tokens), compute_dtype=dtype
        ).trained

    def _measured(self, case: Rounding, edited: EditedModel) -> tuple[Mapping[str, Sensitivity], Costs]:
        """Return the sensitivities of a model, and the costs of its codes; those of the unchanged one are kept."""
        form = FORMATS[case.format]
        offered = {site.name: choices(form, edited.inventory, site, case.limits) for site in matrices(edited.inventory)}
        key, unchanged = (case.format, case.limits), case.structure is None
        sensitivities = self._sensitivities if unchanged else None
        if sensitivities is None:
            sensitivities = measure_all(edited, self._ids)
        costs = self._costs.get(key) if unchanged else None
        if costs is None:
            found = code_costs(edited, self._ids, sensitivities, offered)
            costs = {site: cost for part in found for site, cost in part.items()}
        if unchanged:
            self._sensitivities, self._costs[key] = sensitivities, costs
        return sensitivities, costs

    def _carry_out(
        self, made: Made, plan: Plan, model: StreamedModel, sensitivities: Mapping[str, Sensitivity]
    ) -> None:
        parts: list[CompressedPart] = []
        for _ in compress(model, plan, self._ids, parts, sensitivities=sensitivities):
            pass
        made.parts += parts


def _structural(structure: Structure, model: StreamedModel) -> Plan:
    """Return the plan of the structure. Raises what the method's `plan` raises."""
    chosen = METHODS[structure.method].options.model_validate(structure.options)
    return planner_of(chosen).plan(model.inventory, structure.ratio, chosen, {})

"""How a model predicts when bits and structure bring a whole file to a ratio of bytes, beside llama.cpp's own mixes.

A case of ours takes the original through what a job does: structure, if it asks for some, then a code for each matrix
under the budget that the ratio leaves, then rounding. A mix is what llama.cpp's quantiser makes of the same original,
with an importance matrix from the same text. Each is judged by its divergence from the original.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from gguf import GGUFReader
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer

from bench.clock import timed
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from bench.in_llama_cpp import Judged, Reference
from bench.llama_mixes import Importance, measured_importance, write_mix
from bench.models import RESCALED, model_directory
from bench.texts import Piece, all_windows, spread
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods import METHODS, planner_of
from modelpress.spec.plan import Plan
from modelpress.spec.precision import Precision
from modelpress.spec.rounding import Budget, choose_codes
from modelpress.spec.sizes import bytes_before, choices, matrices
from modelpress.spec.steps import Quantise
from workers.compression.evaluation.fidelity import compare
from workers.compression.formats import writer_of
from workers.compression.formats.gguf.opening import FILE
from workers.compression.math.code_costs import code_costs
from workers.compression.math.sensitivity import Sensitivity, measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress


class Structure(Strict):
    """A method that comes before rounding, and the ratio of parameters that it is to reach."""

    method: str
    ratio: float = Field(gt=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Rounding(Case):
    """One way to a file of a size."""

    ratio: float = Field(gt=1, description="bytes of the weights at 16 bits / bytes of the file")
    format: str = "gguf"
    precision: Precision = "auto"
    structure: Structure | None = None


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
    codes: dict[str, int] = Field({}, description="matrices in each code")
    seconds: dict[str, float] = Field({}, description="of structure, of measuring and of rounding")


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

        def read(piece: Piece, count: int) -> Tensor:
            every = all_windows(tokenizer, piece.read(place.data), self.length)
            return spread(every[int(piece.start * len(every)) : int(piece.stop * len(every))], count)

        ids, windows = read(self.calibration, self.sequences), read(self.judged, self.windows)
        model = StreamedModel.open(directory, dtype=getattr(torch, self.dtype))
        exact = StreamedModel.open(directory, dtype=torch.float32)
        judges, quantiser = _Judges(exact, windows, place.scratch), _LlamaCpp(model, ids)
        for case in cases:
            if isinstance(case, Mix):
                yield quantiser.rounded(case, judges)
            else:
                yield _rounded(case, model, ids, judges)

    def table(self, rows: Sequence[Rounded]) -> Table:
        """Return a row for each case."""
        return Table(
            (
                "file", "times smaller", "MB", "KL in llama.cpp", "perplexity", "same first token",
                "KL of its weights", "predicted", "matrices in each code",
            ),
            tuple(
                (
                    row.case,
                    f"{row.ratio:.2f}",
                    f"{row.bytes / 1e6:.1f}",
                    *_figures(row),
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


def _rounded(case: Rounding, model: StreamedModel, ids: Tensor, judges: _Judges) -> Rounded:
    """Compress the model as a case of ours says, write it, and judge it."""
    made = Made(case, model, ids)
    overlay = EditedModel(model, made.parts).overlay
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
        codes=dict(Counter(made.codes.values())),
        seconds=made.seconds,
    )


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


class Made:
    """A model that one case has compressed.

    Attributes:
        parts: everything that lies over the original.
        codes: the code of each rounded matrix.
        predicted: divergence that the codes' costs add up to.
        seconds: how long each step took.
    """

    def __init__(self, case: Rounding, model: StreamedModel, ids: Tensor) -> None:
        self.parts: list[CompressedPart] = []
        self.seconds: dict[str, float] = {}
        if case.structure is not None:
            with timed(self.seconds, "structure"):
                self._carry_out(_structural(case.structure, model), model, ids, {})
        edited, form = EditedModel(model, self.parts), FORMATS[case.format]
        with timed(self.seconds, "measure"):
            sensitivities = measure_all(edited, ids)
            offered = {
                site.name: choices(form, edited.inventory, site, case.precision) for site in matrices(edited.inventory)
            }
            costs = {
                site: cost for part in code_costs(edited, ids, sensitivities, offered) for site, cost in part.items()
            }
        overhead = writer_of(form.name).overhead(edited.overlay)
        budget = Budget(int(bytes_before(model.inventory) / case.ratio) - overhead)
        self.codes = choose_codes(edited.inventory, form, case.precision, costs, budget)
        self.predicted = sum(costs[site][code] for site, code in self.codes.items())
        with timed(self.seconds, "round"):
            step = Quantise(format=form.name, codes=self.codes)
            plan = Plan(method="quantisation", steps=(step,), parameters_before=1, parameters_after=1)
            self._carry_out(plan, edited, ids, sensitivities)

    def _carry_out(
        self, plan: Plan, model: StreamedModel, ids: Tensor, sensitivities: Mapping[str, Sensitivity]
    ) -> None:
        parts: list[CompressedPart] = []
        for _ in compress(model, plan, ids, parts, sensitivities=sensitivities):
            pass
        self.parts += parts


def _structural(structure: Structure, model: StreamedModel) -> Plan:
    """Return the plan of the structure. Raises what the method's `plan` raises."""
    chosen = METHODS[structure.method].options.model_validate(structure.options)
    return planner_of(chosen).plan(model.inventory, structure.ratio, chosen, {})

"""How a model predicts when bits and structure bring a whole file to a ratio of bytes.

Each case takes the same original through what a job does: structure, if it asks for some, then a code for each matrix
under the budget that the ratio leaves, then rounding. It is judged by its divergence from the original.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer

from bench.clock import timed
from bench.experiment import Case, Experiment, Place, Row, Strict, Table
from bench.models import RESCALED, model_directory
from bench.texts import Piece, all_windows, spread
from modelpress.spec.codes import CODES
from modelpress.spec.formats import FORMATS
from modelpress.spec.methods import METHODS, planner_of
from modelpress.spec.plan import Plan
from modelpress.spec.precision import Precision
from modelpress.spec.rounding import Budget, choose_codes
from modelpress.spec.sizes import bytes_before, bytes_of, choices, matrices
from modelpress.spec.steps import Quantise
from workers.compression.evaluation.fidelity import compare
from workers.compression.formats import writer_of
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


class Rounded(Row):
    """The result of one case."""

    ratio: float = Field(description="as reached")
    bytes: int = Field(description="of the file, all that it holds besides weights included")
    predicted: float = Field(description="divergence that the costs of the codes add up to, nats per token")
    divergence: float = Field(description="KL from the original, nats per token")
    perplexity: float = Field(description="as a ratio to the original's")
    agreement: float = Field(description="share of tokens for which both rank the same one first")
    codes: dict[str, int] = Field(description="matrices in each code")
    seconds: dict[str, float] = Field(description="of structure, of measuring and of rounding")


class Bits(Experiment[Rounding, Rounded]):
    """Divergence at a ratio of bytes."""

    row: ClassVar[type[Row]] = Rounded

    kind: Literal["bits"]
    model: str = RESCALED
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the model while it is compressed")
    calibration: Piece
    sequences: int = 32
    judged: Piece
    windows: int = 16
    length: int = 1024

    def measure(self, cases: Sequence[Rounding], place: Place) -> Iterator[Rounded]:
        """Compress and judge each case; the original is judged in float32, and so is what a case leaves."""
        directory = model_directory(self.model, place.scratch)
        tokenizer = AutoTokenizer.from_pretrained(directory)

        def read(piece: Piece, count: int) -> Tensor:
            every = all_windows(tokenizer, piece.read(place.data), self.length)
            return spread(every[int(piece.start * len(every)) : int(piece.stop * len(every))], count)

        ids, windows = read(self.calibration, self.sequences), read(self.judged, self.windows)
        model = StreamedModel.open(directory, dtype=getattr(torch, self.dtype))
        exact = StreamedModel.open(directory, dtype=torch.float32)
        for case in cases:
            made = _Made(case, model, ids)
            before, after = compare(exact, [EditedModel(exact, made.parts)], windows)
            yield Rounded(
                case=case.name,
                ratio=bytes_before(exact.inventory) / made.bytes,
                bytes=made.bytes,
                predicted=made.predicted,
                divergence=after.divergence,
                perplexity=after.perplexity / before.perplexity,
                agreement=after.agreement,
                codes=dict(Counter(made.codes.values())),
                seconds=made.seconds,
            )

    def table(self, rows: Sequence[Rounded]) -> Table:
        """Return a row for each case."""
        return Table(
            ("case", "ratio", "MB", "KL", "predicted", "perplexity", "same first token", "matrices in each code"),
            tuple(
                (
                    row.case,
                    f"{row.ratio:.2f}",
                    f"{row.bytes / 1e6:.1f}",
                    f"{row.divergence:.4f}",
                    f"{row.predicted:.4f}",
                    f"{row.perplexity:.3f}",
                    f"{row.agreement:.3f}",
                    ", ".join(f"{count} {code}" for code, count in row.codes.items()),
                )
                for row in rows
            ),
        )


class _Made:
    """A model that one case has compressed.

    Attributes:
        parts: everything that lies over the original.
        codes: the code of each rounded matrix.
        bytes: of the file.
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
        self.bytes = overhead + self._weights(edited)
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

    def _weights(self, edited: EditedModel) -> int:
        codes = self.codes
        return bytes_of(edited.inventory, lambda site: CODES[codes[site.name]] if site.name in codes else None)


def _structural(structure: Structure, model: StreamedModel) -> Plan:
    """Return the plan of the structure. Raises what the method's `plan` raises."""
    chosen = METHODS[structure.method].options.model_validate(structure.options)
    return planner_of(chosen).plan(model.inventory, structure.ratio, chosen, {})

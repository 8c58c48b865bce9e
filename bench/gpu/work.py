"""What several steps do: compress a model by a method, and compare what came out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.results import Figures
from bench.race import now
from modelpress.spec.methods import METHODS, Need, planner_of
from modelpress.spec.plan import Plan
from workers.compression.formats import writer_of
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress


@dataclass
class Timed:
    """Seconds by name, each after the device has finished its work."""

    seconds: Figures = field(default_factory=Figures)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = now()
        yield
        self.seconds[f"{name}_seconds"] = now() - started


@dataclass(frozen=True)
class Compressed:
    """A plan and its parts."""

    directory: Path
    plan: Plan
    parts: list[CompressedPart]

    def write(self, destination: Path, form: str = "safetensors") -> Path:
        """Write the package in a format, and return its directory."""
        writer_of(form).write(Overlay.open(self.directory, self.parts), destination)
        return destination

    def edited(self, device: torch.device, dtype: torch.dtype) -> EditedModel:
        """Return the compressed model on a device."""
        return EditedModel(StreamedModel.open(self.directory, device=device, dtype=dtype), self.parts)


def compressed_by(
    model: StreamedModel,
    method: str,
    ratio: float,
    ids: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    parts: list[CompressedPart] | None = None,
    timed: Timed | None = None,
) -> Compressed:
    """Compress a model by a method; `parts` are finished already."""
    timed, parts = timed or Timed(), [] if parts is None else parts
    chosen = METHODS[method].options(**(options or {}))
    planner = planner_of(chosen)
    measured = {}
    if Need.SENSITIVITIES in planner.needs:
        with timed("sensitivities"):
            measured = measure_all(model, ids, tiled=planner.tiled(chosen))
    with timed("plan"):
        plan = planner.plan(model.inventory, ratio, chosen, site_errors(measured))
    with timed("compress"):
        for _ in compress(model, plan, ids, parts, sensitivities=measured):
            pass
    return Compressed(model.overlay.original.directory, plan, parts)


@torch.no_grad()
def logits_of(model: StreamedModel, ids: Tensor) -> Tensor:
    """Return the logits [N, T, V] of token ids [N, T], float32 on the CPU, computed block by block."""
    hidden = model.hidden(ids)
    for index in model.kept:
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden).float().cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors over the norm of the expected one."""
    wanted = expected.double().cpu()
    return float((found.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def allocated(device: torch.device) -> int:
    """Return the bytes that tensors take on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def peak_of(device: torch.device, figures: Figures, name: str) -> Iterator[None]:
    """Put the most bytes that tensors take on a GPU inside the context into `figures[name]`; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        figures[name] = torch.cuda.max_memory_allocated(device)

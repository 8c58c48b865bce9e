"""Every kind of experiment, one file each. A new kind is a file here and a line in KINDS."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.experiment import Experiment, read_document
from bench.kinds.bits import Bits
from bench.kinds.conformance import Conformance
from bench.kinds.filters import Filters
from bench.kinds.jobs import Jobs
from bench.kinds.memory import Memory
from bench.kinds.quality import Quality
from bench.kinds.requests import Requests
from bench.kinds.searches import Searches
from bench.kinds.speed import SpeedRace
from bench.kinds.structures import Structures
from bench.kinds.time_left import TimeLeft
from bench.kinds.training_speed import TrainingSpeed
from bench.kinds.vllm import Vllm

KINDS: Mapping[str, type[Experiment[Any, Any]]] = MappingProxyType(
    {
        "quality": Quality,
        "jobs": Jobs,
        "requests": Requests,
        "conformance": Conformance,
        "filters": Filters,
        "time_left": TimeLeft,
        "speed": SpeedRace,
        "training_speed": TrainingSpeed,
        "memory": Memory,
        "structures": Structures,
        "searches": Searches,
        "bits": Bits,
        "vllm": Vllm,
    }
)


def read_experiment(path: Path) -> Experiment[Any, Any]:
    """Return the experiment that a file states.

    Raises:
        KeyError: the file names no kind, or one that does not exist.
        pydantic.ValidationError: a field is missing, unknown or wrong.
    """
    document = read_document(path)
    return KINDS[document["kind"]].model_validate(document)

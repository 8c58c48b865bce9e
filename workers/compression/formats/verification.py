"""Opening a written package in a fresh process, with stock transformers and nothing of ours, before anyone else does.

    verify(directory, ids, logits)     # ids [N, T], logits [N, T, V] as recorded before; raises VerificationFailed

Promise: a package that passes loads offline, elsewhere, with no tensor missing or left over, computes the recorded
logits and generates with its cache.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from workers.compression.spec.errors import VerificationFailed
from workers.compression.spec.formats import TOLERANCE

_SCRIPT = Path(__file__).parent / "remote_code" / "open_packages.py"
_LAST_OF_ERROR = 2000


@dataclass(frozen=True)
class Probe:
    """A package and what it should compute: `logits` [N, T, V] for `ids` [N, T]. It is loaded in the logits' dtype.

    `tolerance`: how far a logit may lie from the recorded one, as part of the largest. `texts` and `tokenised`: what
    the original's tokenizer makes of these texts, as `companions.tokenised` gives it.
    """

    directory: Path
    ids: Tensor
    logits: Tensor
    tolerance: float = TOLERANCE
    texts: Sequence[str] = ()
    tokenised: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """What the fresh process found: the largest difference of a logit, as part of the largest logit; distinct
    parameters; ids that were generated greedily."""

    difference: float
    parameters: int
    generated: tuple[int, ...]


def verify(
    directory: Path, ids: Tensor, logits: Tensor, *, timeout: float | None = None, memory: int | None = None
) -> Verified:
    """Opens one package. `timeout` is in seconds. Of the weights at most `memory` bytes are held at a time, and the
    others read from the disk whenever they are needed; None holds all. Raises VerificationFailed."""
    return verify_all([Probe(directory, ids, logits)], timeout=timeout, memory=memory)[0]


def verify_all(probes: Sequence[Probe], *, timeout: float | None = None, memory: int | None = None) -> list[Verified]:
    """Opens several packages, one after the other in the same fresh process. Raises VerificationFailed."""
    with tempfile.TemporaryDirectory(prefix="verify-") as elsewhere:
        arguments = ["all" if memory is None else str(memory)]
        for number, probe in enumerate(probes):
            expected = Path(elsewhere) / f"{number}.safetensors"
            tensors = {"ids": probe.ids.contiguous(), "logits": probe.logits.contiguous()}
            save_file(tensors, expected, metadata={"texts": json.dumps(list(probe.texts))})
            arguments += [str(probe.directory.resolve()), str(expected)]
        found = _run(arguments, Path(elsewhere), timeout)
    return [_judge(probe, facts) for probe, facts in zip(probes, found, strict=True)]


def _run(arguments: Sequence[str], elsewhere: Path, timeout: float | None) -> list[dict[str, Any]]:
    environment = {
        **os.environ,
        "HF_HOME": str(elsewhere),
        "HF_MODULES_CACHE": str(elsewhere / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-I", str(_SCRIPT), *arguments]
    try:
        process = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationFailed(f"The package was not open after {timeout} seconds.") from error
    if process.returncode != 0:
        raise VerificationFailed(f"The package does not open: {process.stderr[-_LAST_OF_ERROR:].strip()}")
    found: list[dict[str, Any]] = json.loads(process.stdout)
    return found


def _judge(probe: Probe, facts: dict[str, Any]) -> Verified:
    name = probe.directory.name
    for complaint in ("missing", "unexpected", "mismatched", "missing_in_base"):
        if facts[complaint]:
            raise VerificationFailed(f"{name} has {complaint} tensors: {', '.join(facts[complaint][:3])}.")
    difference = facts["difference"] / facts["scale"]
    if not facts["finite"] or difference > probe.tolerance:
        raise VerificationFailed(
            f"{name} computes other logits than were recorded: they differ by up to {difference:.2g} of the largest."
        )
    _compare_tokenizers(probe, facts["tokenised"])
    return Verified(difference, facts["parameters"], tuple(facts["generated"]))


def _compare_tokenizers(probe: Probe, found: Mapping[str, Any]) -> None:
    name = probe.directory.name
    for aspect, expected in probe.tokenised.items():
        if found.get(aspect) == expected:
            continue
        if aspect == "ids":
            texts = zip(probe.texts, expected, found["ids"], strict=True)
            text = next(text for text, ids, others in texts if ids != others)
            raise VerificationFailed(f"{name} splits {text!r} into other tokens than the original does.")
        raise VerificationFailed(
            f"The tokenizer of {name} differs from the original's in its {aspect.replace('_', ' ')}."
        )

"""Open a written package in a fresh process with stock transformers and no code of ours, and compare its logits.

    verify(directory, ids, logits)     # ids [N, T], logits [N, T, V] as recorded before; raises VerificationFailed

Promise: a package that passes loads offline from another directory, with no tensor missing or unexpected, computes the
recorded logits and generates with its key/value cache.
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

from modelpress.spec.errors import VerificationFailed
from modelpress.spec.formats import TOLERANCE

_SCRIPT = Path(__file__).parent / "remote_code" / "open_packages.py"
_LAST_OF_ERROR = 2000
ENGINE = "transformers"


@dataclass(frozen=True)
class Probe:
    """A package and the logits that it should compute.

    Attributes:
        directory: the package.
        ids: token ids [N, T].
        logits: expected logits [N, T, V]; the package is loaded in their dtype.
        tolerance: largest allowed difference of a logit, as a fraction of the largest logit.
        texts: texts to tokenise.
        tokenised: what the original's tokenizer makes of the texts, as `companions.tokenised` gives it.
    """

    directory: Path
    ids: Tensor
    logits: Tensor
    tolerance: float = TOLERANCE
    texts: Sequence[str] = ()
    tokenised: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """The findings of the fresh process.

    Attributes:
        difference: largest difference of a logit from the expected one, as a fraction of the largest logit; for GGUF
            files the mean divergence from the expected distributions.
        parameters: number of distinct parameters.
        generated: token ids that were generated greedily.
        engine: the engine that opened the package.
        version: the engine's version.
    """

    difference: float
    parameters: int
    generated: tuple[int, ...]
    engine: str
    version: str


def verify(
    directory: Path, ids: Tensor, logits: Tensor, *, timeout: float | None = None, memory: int | None = None
) -> Verified:
    """Open one package in a fresh process, and check that it computes `logits` [N, T, V] for `ids` [N, T].

    Args:
        timeout: seconds after which the check fails; None waits for ever.
        memory: bytes of weights to hold at a time, with the others read from disk when needed; None holds all.

    Raises:
        VerificationFailed: if the package does not open, lacks tensors or computes other logits.
    """
    return verify_all([Probe(directory, ids, logits)], timeout=timeout, memory=memory)[0]


def verify_all(probes: Sequence[Probe], *, timeout: float | None = None, memory: int | None = None) -> list[Verified]:
    """Open several packages one after the other in the same fresh process; see `verify`. Raises VerificationFailed."""
    verdicts = judge_all(probes, timeout=timeout, memory=memory)
    if failed := next((verdict for verdict in verdicts if isinstance(verdict, VerificationFailed)), None):
        raise failed
    return [verdict for verdict in verdicts if isinstance(verdict, Verified)]


def judge_all(
    probes: Sequence[Probe], *, timeout: float | None = None, memory: int | None = None
) -> list[Verified | VerificationFailed]:
    """Return what `verify_all` finds in each package, or why it fails. Raises VerificationFailed where the process
    itself ends."""
    with tempfile.TemporaryDirectory(prefix="verify-") as elsewhere:
        arguments = ["all" if memory is None else str(memory)]
        for number, probe in enumerate(probes):
            expected = Path(elsewhere) / f"{number}.safetensors"
            tensors = {"ids": probe.ids.contiguous(), "logits": probe.logits.contiguous()}
            save_file(tensors, expected, metadata={"texts": json.dumps(list(probe.texts))})
            arguments += [str(probe.directory.resolve()), str(expected)]
        found = _run(arguments, Path(elsewhere), timeout)
    return [_verdict(probe, facts) for probe, facts in zip(probes, found, strict=True)]


def _verdict(probe: Probe, facts: dict[str, Any]) -> Verified | VerificationFailed:
    try:
        return _judge(probe, facts)
    except VerificationFailed as error:
        return error


def _run(arguments: Sequence[str], elsewhere: Path, timeout: float | None) -> list[dict[str, Any]]:
    """Run the script in the directory `elsewhere`, and return its findings, one object per package."""
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
        raise VerificationFailed(f"The package took longer than {timeout} seconds to open and run.") from error
    if process.returncode != 0:
        raise VerificationFailed(f"The package does not open: {process.stderr[-_LAST_OF_ERROR:].strip()}")
    found: list[dict[str, Any]] = json.loads(process.stdout)
    return found


def _judge(probe: Probe, facts: dict[str, Any]) -> Verified:
    """Return the findings for one package. Raises VerificationFailed if they are not as expected."""
    if "failure" in facts:
        raise VerificationFailed(f"The package does not open: {facts['failure'][-_LAST_OF_ERROR:].strip()}")
    name = probe.directory.name
    for complaint in ("missing", "unexpected", "mismatched", "missing_in_base"):
        if facts[complaint]:
            raise VerificationFailed(f"{name} has {complaint} tensors: {', '.join(facts[complaint][:3])}.")
    difference = facts["difference"] / facts["scale"]
    if not facts["finite"] or difference > probe.tolerance:
        raise VerificationFailed(
            f"{name} computes other logits than were recorded: they differ by up to {difference:.2g} of the largest "
            f"logit, and {probe.tolerance:g} is allowed."
        )
    compare_tokenizers(probe, facts["tokenised"])
    return Verified(difference, facts["parameters"], tuple(facts["generated"]), ENGINE, facts["version"])


def compare_tokenizers(probe: Probe, found: Mapping[str, Any]) -> None:
    """Raise VerificationFailed if what a package's tokenizer found of a probe's texts is not what was expected."""
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

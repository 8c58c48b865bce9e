"""Open written GGUF files in llama.cpp, in a fresh process, and compare what they compute with what was recorded."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modelpress.spec.errors import VerificationFailed
from workers.compression.engines.ask import Answers, Questions, ask_all
from workers.compression.engines.llama_cpp import ENGINE, EngineError
from workers.compression.formats.verification import Probe, Verified, compare_tokenizers

FILE = "model.gguf"
"""The name of the file in its directory."""

NEW_TOKENS = 4


def open_in_llama_cpp(
    probes: Sequence[Probe], *, timeout: float | None = None, memory: int | None = None
) -> list[Verified]:
    """Open the GGUF file of each probe in llama.cpp; see `verification.verify_all`.

    llama.cpp computes with activations in few bits, so distributions are compared, by their mean divergence from the
    expected ones in nats. It maps weights from the disk, so that `memory` limits nothing. Raises VerificationFailed.
    """
    try:
        with ask_all([(probe.directory / FILE, _questions(probe)) for probe in probes], timeout=timeout) as found:
            return [_judged(probe, answers) for probe, answers in zip(probes, found, strict=True)]
    except EngineError as error:
        raise VerificationFailed(f"The package does not open: {error}.") from error


def divergence(expected: Tensor, found: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence in nats of distributions from the expected ones, by logits [T, V]."""
    expected, found = expected.float().log_softmax(-1), found.float().log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean().clamp(min=0))


def _questions(probe: Probe) -> Questions:
    return Questions(ids=probe.ids.numpy(), texts=probe.texts, generate=NEW_TOKENS, threads=torch.get_num_threads())


def _judged(probe: Probe, answers: Answers | EngineError) -> Verified:
    """Return the findings for one file. Raises VerificationFailed if they are not as expected, EngineError if it did
    not open."""
    if isinstance(answers, EngineError):
        raise answers
    name = probe.directory.name
    if answers.logits is None or answers.logits.shape != tuple(probe.logits.shape):
        raise VerificationFailed(f"{name} has a vocabulary of another size than the recorded logits.")
    pairs = zip(probe.logits, answers.logits, strict=True)
    difference = float(np.mean([divergence(expected, torch.from_numpy(found.copy())) for expected, found in pairs]))
    if not difference <= probe.tolerance:
        raise VerificationFailed(
            f"{name} computes other probabilities in llama.cpp than were recorded: they diverge by {difference:.2g} "
            f"nats, and {probe.tolerance:g} is allowed."
        )
    expected = {aspect: probe.tokenised[aspect] for aspect in ("ids",) if aspect in probe.tokenised}
    if isinstance(template := probe.tokenised.get("chat_template"), str):
        expected["chat_template"] = template
    compare_tokenizers(
        replace(probe, tokenised=expected), {"ids": answers.tokenised, "chat_template": answers.template}
    )
    return Verified(difference, answers.parameters, tuple(answers.generated), ENGINE, answers.version)

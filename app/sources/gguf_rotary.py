"""Rotary scaling of a GGUF file, in transformers' terms: carried over where it can be said exactly, refused otherwise.

llama.cpp states linear and yarn scaling in the metadata. That of Llama 3.1 it states as numbers alone: one divisor for
each frequency, in the tensor `rope_freqs.weight`. Which parameters gave these divisors is found by computing them anew.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from app.sources.gguf_errors import UnsupportedGguf

LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
LLAMA3_CONTEXTS = (8192, 4096, 16384, 32768)
CLOSE = 1e-3
DEFAULT_THETA = 10_000.0


def rope_parameters(own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rotary scaling that the metadata states; None where it states none.

    `own` is the metadata of the architecture without its prefix, `config` what the file says in transformers' terms.

    Raises:
        UnsupportedGguf: the scaling is of another kind, or has a parameter that transformers does not know.
    """
    kind = own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear"))
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return None
    if not isinstance(factor, float) or not math.isfinite(factor) or factor < 1:
        raise UnsupportedGguf(f"The file scales rotary positions by {factor!r}, which cannot be carried over.")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and own.get("rope.scaling.attn_factor", 1.0) == 1.0:
        original = own.get("rope.scaling.original_context_length") or config.get("max_position_embeddings")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedGguf(f"The file scales rotary positions by '{kind}' in a way that cannot be carried over.")


def llama3_parameters(divisors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """Return the `llama3` scaling that gives these divisors of the frequencies; None where nothing is divided.

    `theta` is the base of the frequencies. The formula is that of Llama 3.1, as transformers computes it.

    Raises:
        UnsupportedGguf: no known parameters give them.
    """
    if all(divisor == 1 for divisor in divisors):
        return None
    factor = float(round(max(divisors)))
    for context in LLAMA3_CONTEXTS:
        computed = llama3_divisors(len(divisors), theta, factor, context)
        if all(math.isclose(*pair, rel_tol=CLOSE) for pair in zip(divisors, computed, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LLAMA3_LOW,
                "high_freq_factor": LLAMA3_HIGH,
                "original_max_position_embeddings": context,
            }
    raise UnsupportedGguf(
        "The file divides rotary frequencies by numbers of its own (rope_freqs.weight), which cannot be carried over; "
        "send the original in transformers' format."
    )


def llama3_divisors(count: int, theta: float, factor: float, context: int) -> list[float]:
    """Return what Llama 3.1 divides each of `count` rotary frequencies by, for `context` positions before scaling."""
    found = []
    for index in range(count):
        wavelength = 2 * math.pi * theta ** (index / count)
        smooth = (context / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
        smooth = min(max(smooth, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found

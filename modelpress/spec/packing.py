"""What a checkpoint of compressed-tensors can hold. Torch-free, because plans and recipes ask before it is written.

storable(CODES["int4_g64"], site)     # why the matrix cannot be stored so, or None
"""

from modelpress.spec.codes import Code
from modelpress.spec.errors import CompressionError
from modelpress.spec.inventory import Site

PACKED = ("int8", "int4_g32", "int4_g64", "int4_g128")
"""The names of the codes that compressed-tensors can hold."""


class NotStorable(CompressionError):
    """A checkpoint of compressed-tensors cannot hold the model; the message says why."""

    code = "method_does_not_fit"


def storable(code: Code, site: Site) -> str | None:
    """Return why a matrix cannot be stored in a code, or None if it can."""
    if code.name not in PACKED:
        return f"compressed-tensors has no code {code.name}; its codes are {', '.join(PACKED)}"
    if site.layout == "conv1d":
        return f"{site.name} is stored transposed, which compressed-tensors cannot hold"
    if not site.packable:
        return f"transformers does not open {site.name} where its weights are integers"
    if not code.fits(site.in_features):
        return f"{site.name} has rows of {site.in_features} weights, and {code.name} needs a multiple of {code.group}"
    return None

"""What a training of the compressed model may change."""

from typing import Literal

Trainable = Literal["all", "factors", "norms"]
"""Which parameters are trained: every one, the tensors of factored layers, or the weights of norms and every bias."""

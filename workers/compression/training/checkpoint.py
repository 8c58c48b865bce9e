"""The state of a training run from which it can be resumed."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ADAM_STATE = ("exp_avg", "exp_avg_sq")
"""The tensors that AdamW keeps of a parameter, as torch calls them."""

_TRAINED = "trained"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A training run after `step` of its `steps` optimizer steps.

    Attributes:
        tokens: tokens trained on so far.
        losses: loss of every step so far.
        restarts: how often the run diverged, went back to a checkpoint and continued at half the learning rate.
        tensors: copies of the trained parameters and of AdamW's state, by `parameter_key` and `state_key`. Where
            several processes hold a share of a parameter each, the leading process alone has the tensors.
    """

    step: int
    steps: int
    tokens: int
    losses: tuple[float, ...]
    restarts: int
    tensors: Mapping[str, Tensor]

    @property
    def trained(self) -> dict[str, Tensor]:
        """The trained parameters by name. AdamW's state, which may lie on disk, is not read."""
        prefix = parameter_key("")
        return {key.removeprefix(prefix): self.tensors[key] for key in self.tensors if key.startswith(prefix)}


def parameter_key(name: str) -> str:
    """Return the key of a parameter among the tensors of a checkpoint."""
    return state_key(_TRAINED, name)


def state_key(field: str, name: str) -> str:
    """Return the key of a tensor that AdamW keeps of a parameter; `field` is one of ADAM_STATE."""
    return f"{field}:{name}"

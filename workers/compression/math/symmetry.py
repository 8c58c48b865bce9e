"""Reorder the hidden units of an MLP without changing what the model computes.

The rows of the matrices that enter an MLP and the columns of the matrix that leaves it may stand in any common order. A
permutation that one of these matrices needs is thus folded into the others and costs nothing at run time.
"""

from typing import cast

import torch
from torch import Tensor, nn

from modelpress.spec.architectures.architecture import Mlp


@torch.no_grad()
def reorder_hidden_units(block: nn.Module, mlp: Mlp, order: Tensor) -> None:
    """Put the MLP's hidden units into `order` [hidden units], which lists their present positions, in place."""
    for name in mlp.entering:
        module = block.get_submodule(name)
        _reorder(module, "weight", order, 0 if isinstance(module, nn.Linear) else 1)
        if getattr(module, "bias", None) is not None:
            _reorder(module, "bias", order, 0)
    leaving = block.get_submodule(mlp.leaving)
    _reorder(leaving, "weight", order, 1 if isinstance(leaving, nn.Linear) else 0)


def _reorder(module: nn.Module, name: str, order: Tensor, dimension: int) -> None:
    """Replace a parameter of the module by its entries in `order` along `dimension`."""
    tensor = cast("Tensor", getattr(module, name))
    setattr(module, name, nn.Parameter(tensor.index_select(dimension, order.to(tensor.device)), requires_grad=False))

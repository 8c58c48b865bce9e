"""Divisions that hold for matrices of zeros, of low rank, and for inputs that never fired."""

import math

import torch
from torch import Tensor


def relative(lost: float, total: float) -> float:
    """Return lost / total, both energies: 0 where nothing is lost of nothing, and never below 0 by rounding."""
    if total > 0:
        return max(lost, 0.0) / total
    return 0.0 if lost <= 0 else math.inf


def ridge_of(energies: Tensor, damping: float) -> float:
    """Return `damping` times the mean of `energies` [n]; 1 where all are 0, as any ridge then gives the same fit."""
    mean = energies.mean().item()
    return damping * mean if mean > torch.finfo(torch.float64).tiny else 1.0

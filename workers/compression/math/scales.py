"""Levels and scales of groups of weights, each group on its own: the parts of `rounding` that know no other column.

Weights are [..., group]; an error e [group] of a group costs Σ h e², with `h` [..., group] broadcast to the weights.
"""

import math

import torch
from torch import Tensor

from modelpress.spec.codes import Code

REACHES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35)
"""Candidates for the scale of a group: its largest weight lands at this fraction of the outermost level; above 1 it is
clipped."""

UNIT_REACHES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
"""Candidates for the unit of a block, of which its groups' scales are multiples: its largest scale lands at this
fraction of the outermost multiple."""

NEARBY = 2
"""How many scales below and above the rounded one a group of a block of several groups tries."""


AT_A_TIME = 2**26
"""The most weights, each counted once for every candidate of its scale, that a card tries together. A CPU tries one
candidate after another, which its cache holds."""

POWERS = (-1, 0, 1)
"""Candidates for the unit of a group where units are powers of two: half, all and twice the one that brings its largest
weight nearest to the outermost level."""


class Levels:
    """The levels of a code, and the candidates for scales, as tensors on one device.

    They are copied to a card once: each copy makes the host wait.
    """

    def __init__(self, code: Code, device: torch.device) -> None:
        self.code = code
        self.lowest, self.highest = code.levels[0], code.levels[-1]
        self._table = torch.tensor(code.levels, dtype=torch.float32, device=device)
        # Levels are whole numbers, so the nearest one is the same for all numbers between two neighbouring halves.
        halves = torch.arange(2 * self.lowest, 2 * self.highest, dtype=torch.float32, device=device) / 2 + 0.25
        self._numbers = torch.bucketize(halves, (self._table[1:] + self._table[:-1]) / 2).to(torch.uint8)
        self._nearest = self._table[self._numbers.long()]
        self._even = len(code.levels) == self.highest - self.lowest + 1
        self.reaches, self.unit_reaches = (torch.tensor(each, device=device) for each in (REACHES, UNIT_REACHES))
        self.nearby = torch.arange(-NEARBY, NEARBY + 1, device=device)

    def numbers(self, steps: Tensor) -> Tensor:
        """Return the number of the level nearest to each weight, which is given in steps of its scale."""
        if self._even:
            return steps.round().clamp_(self.lowest, self.highest).sub_(self.lowest).to(torch.uint8)
        return self._numbers.index_select(0, self._halves(steps)).view_as(steps)

    def values(self, numbers: Tensor) -> Tensor:
        """Return the levels with the given numbers."""
        if self._even:
            return numbers.float().add_(self.lowest)
        return self._table.index_select(0, numbers.flatten().int()).view_as(numbers)

    def nearest(self, steps: Tensor) -> Tensor:
        """Return the level nearest to each weight, which is given in steps of its scale."""
        if self._even:
            return steps.round().clamp_(self.lowest, self.highest)
        return self._nearest.index_select(0, self._halves(steps)).view_as(steps)

    def _halves(self, steps: Tensor) -> Tensor:
        """Return the number of the half-open interval between two halves that each weight lies in, flat."""
        last = len(self._numbers) - 1
        return (steps * 2).floor_().sub_(2 * self.lowest).clamp_(0, last).int().flatten()


def in_steps(weights: Tensor, scales: Tensor) -> Tensor:
    """Return weights / scales, and 0 where the scale is 0 or too small to divide by."""
    return weights * inverse(scales)


def inverse(scales: Tensor) -> Tensor:
    """Return 1 / scales, and 0 where the scale is 0 or too small to divide by."""
    return torch.where(scales.abs() < torch.finfo(scales.dtype).tiny, 0.0, 1 / scales)


def search(levels: Levels, weights: Tensor, h: Tensor, *, signed: bool) -> Tensor:
    """Return the scale [...] of each group with the least error; `signed` lets it be negative.

    Each candidate puts the largest weight at another place of the levels' range, at the lower or the upper end; its
    levels are then fixed, and the scale becomes the best one for them.
    """
    anchor = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
    reaches = levels.reaches.to(anchor)
    if signed:
        candidates = torch.cat((anchor / (levels.lowest * reaches), anchor / (levels.highest * reaches)), -1)
    else:
        candidates = anchor.abs() / (max(-levels.lowest, levels.highest) * reaches)
    best_gain = torch.full_like(anchor.squeeze(-1), -1.0)
    best = torch.zeros_like(best_gain)
    weighted = h * weights
    together = 1 if weights.device.type == "cpu" else max(1, AT_A_TIME // weights.numel())
    for scales in torch.split(candidates, together, -1):
        gains, fitted = _fitted(levels, (weights, weighted, h), scales, signed=signed)
        gain, place = gains.max(-1, keepdim=True)
        better = gain.squeeze(-1) > best_gain
        best_gain = torch.where(better, gain.squeeze(-1), best_gain)
        best = torch.where(better, fitted.gather(-1, place).squeeze(-1), best)
    return best


def _fitted(
    levels: Levels, group: tuple[Tensor, Tensor, Tensor], scales: Tensor, *, signed: bool
) -> tuple[Tensor, Tensor]:
    """Return by how much the error falls [..., n], and the best scale [..., n], for the levels of n scales [..., n].

    `group` has the weights w, h · w, and h.
    """
    weights, weighted, h = group
    chosen = levels.nearest(in_steps(weights.unsqueeze(-2), scales.unsqueeze(-1)))
    along = (chosen * weighted.unsqueeze(-2)).sum(-1)
    energy = chosen.square_().mul_(h.unsqueeze(-2)).sum(-1)
    # Infinitesimal weights make these ratios overflow; a scale of 0 is as good for them.
    fitted = torch.where(energy > 0, along / energy, 0.0).nan_to_num(0.0, 0.0, 0.0)
    return torch.where((fitted >= 0) | signed, along * fitted, -1.0), fitted


def dtype_of_units(code: Code, plain: torch.dtype) -> torch.dtype:
    """Return the dtype in which units are held: `plain`, or the one of more exponents for powers of two."""
    return torch.bfloat16 if code.powers else plain


def stored(code: Code, units: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the units in the precision in which they are stored; too large ones become the largest.

    Powers of two are rounded by their exponent; units below the least power become 0.
    """
    limits = torch.finfo(dtype)
    if code.powers:
        exact = units.clamp(limits.tiny, 2.0 ** math.floor(math.log2(limits.max)))
        return torch.where(units < limits.tiny, 0.0, exact.log2().round_().exp2_())
    return units.clamp(-limits.max, limits.max).to(dtype).float()


def search_group_unit(levels: Levels, weights: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit [...], as stored, with the least error of blocks of one group each, weights [..., group]."""
    code = levels.code
    if not code.powers:
        return stored(code, search(levels, weights, h, signed=code.signed), dtype)
    near = stored(code, weights.abs().amax(-1) / levels.highest, dtype)
    tried = [stored(code, near * 2.0**power, dtype) for power in POWERS]
    lost = [
        (weights - levels.nearest(in_steps(weights, unit.unsqueeze(-1))) * unit.unsqueeze(-1)).square_().mul_(h).sum(-1)
        for unit in tried
    ]
    return torch.stack(tried).gather(0, torch.stack(lost).argmin(0, keepdim=True)).squeeze(0)


def search_unit(levels: Levels, weights: Tensor, h: Tensor, limits: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the unit [rows] with the least error of blocks of several groups, weights [rows, groups, group].

    `limits` are the least and greatest scale of a group in steps of the unit.
    """
    scales = search(levels, weights, h, signed=True)
    chosen = levels.nearest(in_steps(weights, scales.unsqueeze(-1)))
    along, energy = (chosen * h * weights).sum(-1), (chosen.square() * h).sum(-1)
    largest = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    units = stored(levels.code, largest / (limits[0] * levels.unit_reaches.to(largest)), dtype)
    rounded = in_steps(scales.unsqueeze(1), units.unsqueeze(-1)).round_().clamp_(*limits) * units.unsqueeze(-1)
    lost = (rounded.square() * energy.unsqueeze(1) - 2 * rounded * along.unsqueeze(1)).sum(-1)
    return units.gather(-1, lost.argmin(-1, keepdim=True)).squeeze(-1)


def search_scale(levels: Levels, weights: Tensor, h: Tensor, limits: tuple[int, int], units: Tensor) -> Tensor:
    """Return the scale [rows], in steps of the given units [rows], of one group each, weights [rows, group]."""
    ideal = in_steps(search(levels, weights, h, signed=True), units).round_()
    tried = (ideal.unsqueeze(-1) + levels.nearby.to(ideal)).clamp_(*limits)
    steps = (tried * units.unsqueeze(-1)).unsqueeze(-1)
    lost = (weights.unsqueeze(1) - levels.nearest(in_steps(weights.unsqueeze(1), steps)) * steps).square_()
    return tried.gather(-1, lost.mul_(h.unsqueeze(-2)).sum(-1).argmin(-1, keepdim=True)).squeeze(-1)

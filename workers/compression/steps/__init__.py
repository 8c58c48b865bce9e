"""Runners for the steps of a plan. `RUNNERS` is the only list: to add a step, add a file and one line here."""

from collections.abc import Mapping
from types import MappingProxyType

from modelpress.spec.steps import (
    Absorb,
    BaseStep,
    Factor,
    FactorToSize,
    Fuse,
    KeepExperts,
    Narrow,
    Quantise,
    Refit,
    Remove,
)
from workers.compression.steps import absorb, experts, factor, factor_to_size, fuse, narrow, quantise, refit, remove
from workers.compression.steps.work import Runner

RUNNERS: Mapping[type[BaseStep], Runner] = MappingProxyType(
    {
        Remove: Runner(remove.run, applies_at_once=True),
        KeepExperts: Runner(experts.run, applies_at_once=False),
        Refit: Runner(refit.run, applies_at_once=True),
        Absorb: Runner(absorb.run, applies_at_once=True),
        Fuse: Runner(fuse.run, applies_at_once=True),
        Narrow: Runner(narrow.run, applies_at_once=False),
        Factor: Runner(factor.run, applies_at_once=False),
        FactorToSize: Runner(factor_to_size.run, applies_at_once=False),
        Quantise: Runner(quantise.run, applies_at_once=True),
    }
)
"""The runner of every kind of step."""

"""Try out, on a real model, whether it is what its architecture was inferred to be."""

from dataclasses import fields, replace
from pathlib import Path

import torch

from modelpress.spec.architectures import INFERRED, architecture_of
from modelpress.spec.config import read_config
from modelpress.spec.errors import UnsupportedArchitecture
from workers.compression.inferred.block import BlockFacts, NotUnderstood, block_facts
from workers.compression.inferred.trial import Trial
from workers.compression.models.streamed import StreamedModel

TOKENS = 8


def check_inferred(directory: Path) -> None:
    """Check that the first block of a checkpoint is what its inferred architecture says, with the model's own weights.

    Raises UnsupportedArchitecture, with what differs, where it is not.
    """
    architecture = architecture_of(read_config(directory))
    model = StreamedModel.open(directory)
    hidden = torch.randn((1, TOKENS, model.inventory.embedding.in_features), generator=torch.Generator().manual_seed(0))
    with model.block(0) as block:
        trial = Trial(block, lambda states: model.run(block, 0, states), hidden)
        try:
            found = block_facts(trial)
        except NotUnderstood as error:
            raise UnsupportedArchitecture(
                f"The architecture {architecture.model_type!r} is not registered, and the parts of this model cannot "
                f"be told from its structure: {error}."
            ) from error
    stated = BlockFacts.of(architecture)
    if set(found.whole) <= set(stated.whole):  # further ones are of other kinds of blocks
        found = replace(found, whole=stated.whole)
    odd = next(
        (each.name for each in fields(BlockFacts) if getattr(found, each.name) != getattr(stated, each.name)), None
    )
    if odd is not None:
        raise UnsupportedArchitecture(
            f"The architecture {architecture.model_type!r} is not registered, and this model differs in its {odd} from "
            f"the models of its type that transformers {INFERRED.transformers} makes by default: "
            f"{getattr(found, odd)} in the place of {getattr(stated, odd)}."
        )

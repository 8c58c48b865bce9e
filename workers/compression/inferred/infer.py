"""Infer the description of an architecture from a tiny random model of it."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modelpress.spec.architectures.architecture import Architecture
from workers.compression.inferred.block import BlockFacts, NotUnderstood, block_facts, same
from workers.compression.inferred.fields import bears_integers, fewer_heads, width_field
from workers.compression.inferred.tiny import changed, random_model, run, said, tiny_config, token_ids
from workers.compression.inferred.trial import Trial
from workers.compression.structures import scale_of

LEFT_OUT = re.compile(r"\^?(\w+(?:\\\.\w+)*)(?:\\\.|\.\*|\\\.\.\*)")
"""A pattern of transformers for all names that begin with a word, such as `^mtp\\.` or `mtp.*`."""


class _Reached(Exception):
    """Ends a forward pass at the block that is looked at."""


def infer(model_type: str) -> Architecture:
    """Return the description of a type of model. Raises NotUnderstood, whose message is the reason."""
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise NotUnderstood("transformers has no causal language model of this type")
    kind = CONFIG_MAPPING[model_type]
    if kind.model_type != model_type:
        raise NotUnderstood(f"models of it state {kind.model_type!r} as their type")
    require_one_decoder(kind)
    return infer_from(tiny_config(model_type))


def require_one_decoder(kind: type[PreTrainedConfig]) -> None:
    """Raise NotUnderstood for an encoder beside the decoder, a model of several parts, and a recurrent one."""
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING[kind], "_is_stateful", False):
        raise NotUnderstood("it carries a state of its own kind from token to token, as recurrent models do")
    try:
        config = kind()
    except Exception as error:  # transformers raises anything
        raise NotUnderstood(f"transformers has no default config of it ({said(error)})") from error
    if config.is_encoder_decoder:
        raise NotUnderstood("it is an encoder with a decoder")
    parts = sorted(
        name for name, part in config.sub_configs.items() if part is AutoConfig or part.model_type in CONFIG_MAPPING
    )
    if parts:
        raise NotUnderstood(f"it is made of several models ({', '.join(parts)})")


def infer_from(config: PreTrainedConfig) -> Architecture:
    """Return the description of the type of a tiny model's config. Raises NotUnderstood."""
    model = random_model(config)
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or type(head) is not nn.Linear:
        raise NotUnderstood("its embedding is no table, or its output head no plain linear layer")
    require_plain_table(embedding)
    blocks = block_list(model)
    require_causal(model)
    trials = [trial_of(model, blocks, index) for index in kinds(blocks)]
    facts = common_facts([block_facts(trial) for trial in trials])
    found = Architecture(
        model_type=config.model_type,
        base=model.base_model_prefix,
        blocks=names[blocks],
        embedding=names[embedding],
        tied=bool(config.tie_word_embeddings),
        mlp=facts.mlp,
        attention=facts.attention,
        layout=facts.layout,
        head=names[head],
        blocks_field=blocks_field(config, len(blocks)),
        width_field=None,
        mixed=len(trials) > 1,
        whole=facts.whole,
        left_out=left_out(model),
    )
    require_tied_as_stated(config)
    found = replace(found, width_field=width_field(model, found))
    found = replace(found, attention=replace(found.attention, heads=fewer_heads(model, found, trials[0])))
    return replace(found, integers=bears_integers(model, found))


@torch.no_grad()
def require_plain_table(embedding: nn.Embedding) -> None:
    """Raise NotUnderstood unless the embedding returns rows of its table, multiplied by the factor that it states."""
    ids = token_ids()
    if not same(embedding(ids), embedding.weight[ids] * scale_of(embedding)):
        raise NotUnderstood("its embedding returns something else than rows of its table")


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's blocks. Raises NotUnderstood unless there is exactly one."""
    count = model.config.num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and any(True for _ in module.parameters())
    }
    outer = [each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise NotUnderstood(f"{len(outer)} lists of its modules, and not one, are as long as its config states blocks")
    return outer[0]


def kinds(blocks: nn.ModuleList) -> list[int]:
    """Return the number of the first block of each kind; blocks of one kind hold the same tensors."""
    first: dict[frozenset[tuple[str, torch.Size]], int] = {}
    for index, block in enumerate(blocks):
        first.setdefault(frozenset((name, each.shape) for name, each in block.named_parameters()), index)
    return list(first.values())


def common_facts(found: Sequence[BlockFacts]) -> BlockFacts:
    """Return what is true of blocks of several kinds. Raises NotUnderstood where they differ in more than tensors that
    stay whole."""
    whole = dict.fromkeys(name for facts in found for name in facts.whole)
    common = {replace(facts, whole=tuple(whole)) for facts in found}
    if len(common) > 1:
        raise NotUnderstood("its blocks are of several kinds, with other MLPs or attentions")
    return common.pop()


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Raise NotUnderstood where a token sees those behind it."""
    ids = token_ids()
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 90 + 3
    before, after = run(model, ids), run(model, other)
    if not same(after[:, :-1], before[:, :-1]):
        raise NotUnderstood("its tokens see those behind them, as in an encoder")


@torch.no_grad()
def trial_of(model: PreTrainedModel, blocks: nn.ModuleList, index: int) -> Trial:
    """Return a block with the arguments that the model calls it with. Raises NotUnderstood."""
    block, seen = blocks[index], list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append((arguments, keywords))
        raise _Reached

    with block.register_forward_pre_hook(note, with_kwargs=True), suppress(_Reached):
        cast("Any", model)(token_ids()[:1, :6], use_cache=False)
    if not seen or not seen[0][0] or not isinstance(seen[0][0][0], Tensor) or seen[0][0][0].dim() != 3:
        raise NotUnderstood("its blocks are not called with hidden states as their first argument")
    (hidden, *others), keywords = seen[0]

    def forward(states: Tensor) -> Tensor:
        written = block(states, *others, **keywords)
        following: Tensor = written[0] if isinstance(written, tuple) else written
        return following

    if not isinstance(forward(hidden), Tensor) or forward(hidden).shape != hidden.shape:
        raise NotUnderstood("its blocks do not return hidden states of the shape that they are given")
    return Trial(block, forward, torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)))


def blocks_field(config: PreTrainedConfig, count: int) -> str:
    """Return the config's own name for the number of blocks. Raises NotUnderstood."""
    field: str = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if config.to_dict().get(field) != count:
        raise NotUnderstood(f"its config does not state the number of its blocks as {field}")
    return field


def require_tied_as_stated(config: PreTrainedConfig) -> None:
    """Raise NotUnderstood unless tie_word_embeddings says whether the head shares the embedding's table."""
    for stated in (False, True):
        try:
            model: Any = random_model(changed(config, tie_word_embeddings=stated))
        except Exception as error:  # transformers raises anything
            raise NotUnderstood(f"it cannot have tie_word_embeddings {stated} ({said(error)})") from error
        if (model.get_output_embeddings().weight is model.get_input_embeddings().weight) != stated:
            raise NotUnderstood(f"tie_word_embeddings {stated} does not say what its output head reads")


def left_out(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the beginnings of names that transformers leaves out, as far as it states them as such."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    beginnings = (LEFT_OUT.fullmatch(pattern) for pattern in patterns)
    return tuple(f"{each[1].replace(chr(92), '')}." for each in beginnings if each is not None)

"""Where each tensor of a transformers model is found in a checkpoint's files.

Most tensors have the same name in both. transformers 5 keeps the experts of a mixture in one tensor, while checkpoints
have a matrix for each of them; some modules have other names. transformers' own table says which.

    layout = Layout.of(skeleton)
    sources = layout.sources(names_in_files)       # {"…experts.gate_up_proj": ("…experts.0.gate_proj.weight", …)}
    layout.merged(name, {source: tensor})          # one tensor of the model
    layout.split(name, tensor)                     # the way back
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        WeightRenaming,
        apply_converters,
        apply_renamings,
        dot_natural_key,
        rename_source_key,
    )

    _HAS_TABLE = True
except ImportError:  # transformers 4 has one name for each tensor
    _HAS_TABLE = False

Sources = dict[str, tuple[str, ...]]
"""{tensor of the model: names in the files, in order}."""


class Layout:
    """The conversion between the tensors of a model and those of its files; `Layout.of` makes one."""

    def __init__(self, transforms: Iterable[Any], config: Any) -> None:
        self._config = config
        chosen = list(transforms)
        back = [each.reverse_transform() for each in reversed(chosen)]
        self._renamings, self._converters = _kinds(chosen)
        self._back_renamings, self._back_converters = _kinds(back)

    @classmethod
    def of(cls, skeleton: PreTrainedModel) -> "Layout":
        """Return the layout of the files that transformers reads and writes for this model."""
        table = get_model_conversion_mapping(skeleton, add_legacy=False) if _HAS_TABLE else []
        # A changed prefix is of files that hold more than a language model.
        return cls([each for each in table if not isinstance(each, PrefixChange)], skeleton.config)

    def sources(self, names: Iterable[str]) -> Sources:
        """Return the names in the files of each tensor of the model."""
        if not self._renamings and not self._converters:
            return {name: (name,) for name in names}
        found: dict[str, list[str]] = {}
        for name in sorted(names, key=dot_natural_key):
            found.setdefault(self._target(name)[0], []).append(name)
        return {target: tuple(its) for target, its in found.items()}

    def merged(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor `name` of the model, made from those of its files in the order of `sources`."""
        converter: Any = None
        for source, tensor in tensors.items():
            target, pattern = self._target(source)
            if pattern is None:
                return tensor
            if converter is None:
                converter = _converter_of(self._converters, pattern)
            converter.add_tensor(target, source, pattern, _ready(tensor))
        return _only(converter.convert(name, config=self._config))[1]

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the files, by name, that the tensor `name` of the model is made from."""
        renamed, pattern = apply_converters(name, self._back_converters) if self._back_converters else (name, None)
        if pattern is None:
            return {apply_renamings(name, self._back_renamings) if self._back_renamings else name: tensor}
        converter = _converter_of(self._back_converters, pattern)
        converter.add_tensor(renamed, name, pattern, _ready(tensor))
        made: dict[str, Any] = converter.convert(renamed, config=self._config)
        return {
            apply_renamings(key, self._back_renamings): (value[0] if isinstance(value, list) else value).contiguous()
            for key, value in made.items()
        }

    def _target(self, name: str) -> tuple[str, str | None]:
        """Return the name in the model of a tensor in the files, and the pattern of the converter that makes it."""
        if not self._renamings and not self._converters:
            return name, None
        found: tuple[str, str | None] = rename_source_key(name, self._renamings, self._converters)
        return found


def _kinds(transforms: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Return the transforms that rename, and those that convert."""
    chosen = list(transforms)
    if not chosen:
        return [], []
    return (
        [each for each in chosen if isinstance(each, WeightRenaming)],
        [each for each in chosen if isinstance(each, WeightConverter)],
    )


def _converter_of(converters: Iterable[Any], pattern: str) -> Any:
    """Return an empty copy of the converter that has this source pattern."""
    return copy.deepcopy(next(each for each in converters if pattern in each.source_patterns))


def _ready(tensor: Tensor) -> Any:
    """Return the tensor as a converter takes it: a function that reads it."""
    return lambda: tensor


def _only(made: dict[str, Any]) -> tuple[str, Tensor]:
    ((name, value),) = made.items()
    return name, value[0] if isinstance(value, list) else value

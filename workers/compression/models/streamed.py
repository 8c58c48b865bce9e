"""Open a checkpoint block by block, so that a model larger than memory can be run, measured and compressed.

    model = StreamedModel.open(directory, device="cpu", dtype=torch.float32)
    hidden = model.hidden(ids)                        # [N, T] -> [N, T, H], the input of block 0
    for index in range(model.inventory.blocks):
        with model.block(index) as block:             # real weights, released afterwards
            hidden = model.run(block, index, hidden)  # [N, T, H] -> [N, T, H]
    logits = model.logits(hidden)                     # [N, T, H] -> [N, T, V]

`model.embedder()` and `model.head()` hold the embedding or the head over many calls, `model.with_embedding(module)`
puts another module in the embedding's place, and `model.whole()` returns the model in one piece.

Promise: weights come from the files or the model is refused; nothing is ever left at random. In memory are the
skeleton, everything outside the blocks except embedding and head, and what a `with` statement holds. A card also holds
the block that is expected next, which is read and copied while it computes.

No architecture's forward is repeated here. The skeleton, on the meta device, runs its own forward with blocks that pass
their input through. This records the arguments of each block (masks, positions, per layer type), and everything around
the blocks is the model's own.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from modelpress.spec.architectures import architecture_of
from modelpress.spec.config import original_config, read_config
from modelpress.spec.headers import StoredTensor, stored_tensors
from modelpress.spec.inventory import weights
from workers.compression import structures
from workers.compression.lane import lane_for
from workers.compression.models.ahead import Ahead, Allocate
from workers.compression.models.checked import check_repeated_head
from workers.compression.models.layout import Layout, Sources
from workers.compression.models.skeleton import (
    assign,
    check_complete,
    empty_model,
    head_name,
    inventory_of,
    release,
)
from workers.compression.overlay import Original, Overlay

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_REMEMBERED_SHAPES = 4


class _Reached(Exception):
    """Ends the skeleton's forward once it has recorded enough."""


class StreamedModel:
    """A causal language model of which one part at a time is in memory. Make one with `open`.

    It computes in `dtype` on `device`, in evaluation mode, without gradients of weights. `ahead` reads the next block.
    """

    def __init__(
        self,
        skeleton: PreTrainedModel,
        overlay: Overlay,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.overlay = overlay
        self.inventory = overlay.inventory
        self.device = device
        self.dtype = dtype
        self._skeleton = skeleton
        self._blocks = skeleton.get_submodule(self.inventory.block_prefix)
        self._embedding_name = self.inventory.embedding.name
        self._head_name = head_name(skeleton)
        self.layout = Layout.of(skeleton)
        self._names = self._canonical_names()
        self._embedding_is_given = False
        self._arguments: dict[tuple[int, int], list[Arguments]] = {}
        self.ahead = Ahead(self._read_block, lambda: self.kept, lane_for(device)) if device.type == "cuda" else None
        self._materialise_surroundings()
        self._blocks_return_tuples = self._probe_block_output()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "StreamedModel":
        """Open a directory of `config.json` and safetensors files.

        A factored package opens as well: its inventory names the original's modules and counts the package's
        parameters. Raises UnsupportedArchitecture, and MalformedModel also for missing, unexpected or misshapen
        tensors.
        """
        config, replaced = original_config(read_config(directory))
        architecture_of(config)
        tensors = stored_tensors(directory)
        skeleton = empty_model(config, dtype, torch.device(device))
        contents = inventory_of(config, tensors, skeleton, replaced)
        structures.replace(skeleton, replaced)
        skeleton.requires_grad_(False)
        check_complete(skeleton, config, tensors)
        original = Original(directory, config, contents, weights(config, tensors), tensors, replaced)
        model = cls(skeleton, Overlay(original), torch.device(device), dtype)
        check_repeated_head(model.overlay)
        return model

    @property
    def kept(self) -> Sequence[int]:
        """The numbers of the blocks, in order."""
        return range(self.inventory.blocks)

    @property
    def tensor_names(self) -> Collection[str]:
        """The names, in the transformers model, of all tensors that are stored now."""
        return self._names.keys()

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the input of block 0, [N, T, H], for token ids [N, T]."""
        with self.embedder() as embed:
            return embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [N, T, V] for the last block's output [N, T, H], through final norm, head and soft-capping."""
        with self.head() as head:
            return head(hidden)

    @torch.no_grad()
    def head_inputs(self, hidden: Tensor) -> Tensor:
        """Return the input of the output head [N, T, E] for the last block's output [N, T, H], without reading the
        head."""
        entered: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entered.append(arguments[0])
            raise _Reached

        with self.head_module.register_forward_pre_hook(stop), suppress(_Reached):
            self._project(hidden)
        return entered[0]

    @contextmanager
    def embedder(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Hold the embedding and yield the function `hidden`."""
        with self._materialised(self._embedding_name):
            yield self._embed

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Hold the output head and yield the function `logits`."""
        with self._materialised(self._head_name):
            yield self._project

    @property
    def embedding_module(self) -> nn.Module:
        """The embedding's module; it has weights only while `embedder` holds it."""
        return self._skeleton.get_submodule(self._embedding_name)

    @property
    def head_module(self) -> nn.Module:
        """The output head's module, for hooks; it has weights only while `head` holds it."""
        return self._skeleton.get_submodule(self._head_name)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Yield a copy of decoder block `index` with its weights in `dtype` on `device`, which are released afterwards.

        Its modules may be replaced meanwhile; the replacements keep their weights.
        """
        block = copy.deepcopy(self._blocks.get_submodule(str(index)))
        name = f"{self.inventory.block_prefix}.{index}."
        block.load_state_dict(self.ahead.take(index) if self.ahead else self._read_below(name), assign=True)
        modules = list(block.modules())
        try:
            yield block
        finally:
            # The caller's loop variable holds the block while the next one is read; free its weights anyway.
            for module in modules:
                release(module)

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Return a block's output [N, T, H] for its input [N, T, H], as block `index` of the model; gradients pass
        through."""
        arguments, keywords = self._arguments_for(hidden.shape[0], hidden.shape[1])[index]
        output = block(hidden, *arguments, **keywords)
        following: Tensor = output[0] if isinstance(output, tuple) else output
        return following

    @contextmanager
    def with_embedding(self, module: nn.Module) -> Iterator[None]:
        """Temporarily replace the embedding by `module`, which maps ids [N, T] to [N, T, E].

        A tied head still reads the original's table.
        """
        own = self.embedding_module
        self._put_embedding(module.to(self.device).eval())
        self._embedding_is_given = True
        try:
            yield
        finally:
            self._put_embedding(own)
            self._embedding_is_given = False

    def _put_embedding(self, module: nn.Module) -> None:
        parent, _, leaf = self._embedding_name.rpartition(".")
        setattr(self._skeleton.get_submodule(parent), leaf, module)

    def whole(self) -> PreTrainedModel:
        """Return a copy of the transformers model with all its weights, in `dtype` on `device`; it shares no memory."""
        model = copy.deepcopy(self._skeleton)
        for name, tensor in self.read(self._names).items():
            assign(model, name, tensor)
        self._share_table(model)
        return model

    def _share_table(self, model: PreTrainedModel) -> None:
        """Give a tied head the embedding's whole table; a head that reads factors has them already."""
        if self.overlay.is_tied and self._embedding_name not in self.overlay.structures:
            table = model.get_parameter(f"{self._embedding_name}.weight")
            model.get_submodule(self._head_name).register_parameter("weight", table)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return copies of tensors by their full names in the transformers model, on `device`, floating ones in
        `dtype`."""
        return self._read(names, lambda tensor: tensor.to(self.device, self._own_dtype(tensor), copy=True))

    def _read(self, names: Iterable[str], copied: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        wanted = list(names)
        parts = self._read_canonical([canonical for name in wanted for canonical in self._names[name]], copied)
        # Each is taken out, so that what several tensors are made into is in memory twice for one of them at most.
        return {
            name: self.layout.merged(name, {canonical: parts.pop(canonical) for canonical in self._names[name]})
            for name in wanted
        }

    def _read_canonical(self, names: Iterable[str], copied: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return tensors by their canonical names, each as `copied` returns it."""
        found: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            part = self.overlay.holder(name)
            if part is None:
                by_file.setdefault(self._stored(name).file, []).append(name)
            else:
                found[name] = copied(part[name])
        for file, its_names in by_file.items():
            # Open anew each time: a mapping that stays open keeps every page that was read resident.
            with safe_open(file, framework="pt") as stored:
                for name in its_names:
                    tensor = stored.get_tensor(self.overlay.stored_name(name))
                    found[name] = copied(self.overlay.cut(name, tensor))
        return found

    def _own_dtype(self, tensor: Tensor) -> torch.dtype:
        return self.dtype if tensor.is_floating_point() else tensor.dtype

    def _stored(self, canonical: str) -> StoredTensor:
        return self.overlay.original.tensors[self.overlay.stored_name(canonical)]

    def _canonical_names(self) -> Sources:
        """Return, for the skeleton's name of each tensor, the canonical names of those that it is made from."""
        sources = self.layout.sources(self.overlay.shapes)
        return {self._own_name(name): its for name, its in sources.items()}

    def _own_name(self, canonical: str) -> str:
        """Return the skeleton's name of a module or tensor: releases of transformers differ in what they call an output
        head."""
        module, dot, rest = canonical.partition(".")
        return f"{self._head_name}{dot}{rest}" if module == self.overlay.architecture.head else canonical

    def _read_block(self, index: int, empty: Allocate) -> dict[str, Tensor]:
        """Return a block's tensors by their names in it, in memory that `empty` allocates."""
        prefix = f"{self.inventory.block_prefix}.{index}."
        found = self._read(self._below(prefix), lambda each: empty(each.shape, self._own_dtype(each)).copy_(each))
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def _read_below(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.read(self._below(prefix)).items()}

    def _below(self, prefix: str) -> list[str]:
        return [name for name in self._names if name.startswith(prefix)]

    def _materialise_surroundings(self) -> None:
        """Load everything outside blocks, embedding and head: norms, learned positions, projections of embeddings."""
        streamed = tuple(f"{part}." for part in (self.inventory.block_prefix, self._embedding_name, self._head_name))
        names = [name for name in self._names if not name.startswith(streamed)]
        for name, tensor in self.read(names).items():
            assign(self._skeleton, name, tensor)

    @contextmanager
    def _materialised(self, name: str) -> Iterator[None]:
        """Hold the weights of the embedding or head; a module put in the embedding's place has its own already."""
        if self._embedding_is_given and name == self._embedding_name:
            yield
            return
        module = self._skeleton.get_submodule(name)
        source = self._embedding_name if name == self._head_name and self.overlay.is_tied else name
        if isinstance(module, structures.TiedHead):
            module = self.embedding_module
        empty = module.state_dict()
        module.load_state_dict(self._read_below(f"{source}."), assign=True)
        try:
            yield
        finally:
            module.load_state_dict(empty, assign=True)

    @torch.no_grad()
    def _embed(self, ids: Tensor) -> Tensor:
        entered: list[Tensor] = []

        def stop(index: int, hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
            entered.append(hidden)
            raise _Reached

        with self._passing(stop), suppress(_Reached):
            self._skeleton.base_model(input_ids=ids.to(self.device), use_cache=False)
        return entered[0]

    def _project(self, hidden: Tensor) -> Tensor:
        last = self.inventory.blocks - 1

        def inject(index: int, passed: Tensor, *arguments: Any, **keywords: Any) -> Any:
            return self._block_output(hidden if index == last else passed)

        with self._passing(inject):
            outputs = self._skeleton(inputs_embeds=self._no_embeddings(*hidden.shape[:2]), use_cache=False)
        logits: Tensor = outputs.logits
        return logits

    @torch.no_grad()
    def _arguments_for(self, sequences: int, length: int) -> list[Arguments]:
        """Return each block's arguments beside the hidden states, for inputs [sequences, length]."""
        shape = (sequences, length)
        if shape not in self._arguments:
            seen: list[Arguments] = []

            def record(index: int, hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
                seen.append((arguments, keywords))
                if len(seen) == self.inventory.blocks:
                    raise _Reached
                return self._block_output(hidden)

            with self._passing(record), suppress(_Reached):
                self._skeleton.base_model(inputs_embeds=self._no_embeddings(*shape), use_cache=False)
            if len(self._arguments) == _REMEMBERED_SHAPES:
                self._arguments.pop(next(iter(self._arguments)))
            self._arguments[shape] = seen
        return self._arguments[shape]

    @contextmanager
    def _passing(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Temporarily let every block of the skeleton compute `forward(index, hidden, ...)` instead of its own."""
        blocks = list(self._blocks.children())
        for index, block in enumerate(blocks):
            block.forward = partial(forward, index)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _no_embeddings(self, sequences: int, length: int) -> Tensor:
        return torch.zeros(
            sequences, length, self.inventory.embedding.in_features, dtype=self.dtype, device=self.device
        )

    def _block_output(self, hidden: Tensor) -> Any:
        return (hidden,) if self._blocks_return_tuples else hidden

    @torch.no_grad()
    def _probe_block_output(self) -> bool:
        """Return whether blocks return (hidden, ...) or hidden alone; releases of transformers differ."""
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def stop(index: int, hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
            calls.append((hidden, arguments, keywords))
            raise _Reached

        with self._passing(stop), suppress(_Reached):
            self._skeleton.base_model(inputs_embeds=self._no_embeddings(1, 1), use_cache=False)
        hidden, arguments, keywords = calls[0]
        block = copy.deepcopy(self._blocks.get_submodule("0")).to_empty(device=self.device)
        for tensor in block.state_dict().values():
            tensor.zero_()
        return isinstance(block(hidden, *arguments, **keywords), tuple)

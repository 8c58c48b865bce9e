"""Opening a checkpoint block by block, so that a model larger than memory can be run, measured and compressed.

    model = StreamedModel.open(directory, device="cpu", dtype=torch.float32)
    hidden = model.hidden(ids)                        # [N, T] -> [N, T, H], what enters block 0
    for index in range(model.inventory.blocks):
        with model.block(index) as block:             # real weights, released afterwards
            hidden = model.run(block, index, hidden)  # [N, T, H] -> [N, T, H]
    logits = model.logits(hidden)                     # [N, T, H] -> [N, T, V]

`model.embedder()` and `model.head()` hold the embedding or the head over many calls, `model.with_embedding(module)`
puts a compact module in the embedding's place, and `model.whole()` is the model in one piece, where that fits into
memory.
`convert_gguf(path, directory)` makes a GGUF file into such a directory.

Promise: weights come from the files or the model is refused; nothing is ever left at random. In memory are the
skeleton, what lies outside the blocks apart from embedding and head, and what a `with` statement holds.

No architecture's forward is repeated here. The skeleton, on the meta device, runs its own forward with blocks that pass
their input through: that shows what each block is called with (masks, positions, per layer type), and what surrounds
the blocks is the model's own.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from workers.compression import structures
from workers.compression.models.skeleton import (
    assign,
    check_complete,
    empty_model,
    head_name,
    inventory_of,
    names_in,
    release,
)
from workers.compression.overlay import Original, Overlay
from workers.compression.spec.architectures import architecture_of
from workers.compression.spec.config import is_tied, original_config, read_config
from workers.compression.spec.errors import MalformedModel, NoTokenizer
from workers.compression.spec.headers import StoredTensor, stored_tensors
from workers.compression.spec.inventory import weights

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_REMEMBERED_SHAPES = 4


class _Reached(Exception):
    """Ends the skeleton's forward once there is nothing more to learn from it."""


class StreamedModel:
    """A causal language model of which one part at a time is in memory. Make one with `open`.

    `dtype` is that of all computation, `device` is where it happens. The model evaluates and keeps no gradients.
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
        self._names = self._canonical_names()
        self._embedding_is_given = False
        self._arguments: dict[tuple[int, int], list[Arguments]] = {}
        self._materialise_surroundings()
        self._blocks_return_tuples = self._ask_a_block()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "StreamedModel":
        """Opens a directory of `config.json` and safetensors files.

        A package of `checkpoint` opens as well: its inventory names the original's sites and counts its own
        parameters. Raises UnsupportedArchitecture and MalformedModel, the latter also for missing, unexpected or
        misshapen tensors.
        """
        config, replaced = original_config(read_config(directory))
        architecture_of(config)
        tensors = stored_tensors(directory)
        skeleton = empty_model(config, dtype, torch.device(device))
        contents = inventory_of(config, tensors, skeleton, replaced)
        structures.replace(skeleton, replaced)
        skeleton.requires_grad_(False)
        names = weights(config, tensors)
        stored_names = names_in(skeleton, architecture_of(config).head, names)
        check_complete(skeleton, tensors, stored_names, tied=is_tied(config))
        original = Original(directory, config, contents, names, tensors, replaced)
        model = cls(skeleton, Overlay(original), torch.device(device), dtype)
        model._check_repeated_head()
        return model

    @property
    def tensor_names(self) -> Collection[str]:
        """The names of all tensors that are stored now, as the transformers model has them."""
        return self._names.keys()

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [N, T] to what enters block 0, [N, T, H]."""
        with self.embedder() as embed:
            return embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """What leaves the last block, [N, T, H], to logits [N, T, V], through final norm, head and soft-capping."""
        with self.head() as head:
            return head(hidden)

    @torch.no_grad()
    def head_inputs(self, hidden: Tensor) -> Tensor:
        """What leaves the last block, [N, T, H], to what enters the output head, [N, T, E]; the head is not read."""
        entered: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entered.append(arguments[0])
            raise _Reached

        with self.head_module.register_forward_pre_hook(stop), suppress(_Reached):
            self._project(hidden)
        return entered[0]

    @contextmanager
    def embedder(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Holds the embedding and gives the function `hidden`."""
        with self._materialised(self._embedding_name):
            yield self._embed

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Holds the output head and gives the function `logits`."""
        with self._materialised(self._head_name):
            yield self._project

    @property
    def embedding_module(self) -> nn.Module:
        """The embedding itself; it has weights only while `embedder` holds it."""
        return self._skeleton.get_submodule(self._embedding_name)

    @property
    def head_module(self) -> nn.Module:
        """The output head itself, to be watched; it has weights only while `head` holds it."""
        return self._skeleton.get_submodule(self._head_name)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """A copy of the decoder block with its weights, in `dtype` on `device`, which are gone afterwards.

        Its modules may be replaced meanwhile; what was put in their place stays.
        """
        block = copy.deepcopy(self._blocks.get_submodule(str(index)))
        prefix = f"{self.inventory.block_prefix}.{index}."
        block.load_state_dict(self._read_below(prefix), assign=True)
        modules = list(block.modules())
        try:
            yield block
        finally:
            # A loop's variable still holds the block while the next one is read; the weights must not stay with it.
            for module in modules:
                release(module)

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The output [N, T, H] of a block at the place `index`, for the input [N, T, H]; gradients pass through."""
        arguments, keywords = self._arguments_for(hidden.shape[0], hidden.shape[1])[index]
        output = block(hidden, *arguments, **keywords)
        following: Tensor = output[0] if isinstance(output, tuple) else output
        return following

    @contextmanager
    def with_embedding(self, module: nn.Module) -> Iterator[None]:
        """For a while `module`, which maps ids [N, T] to [N, T, E], stands in the place of the embedding.

        A tied head goes on reading the original's table.
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
        """The transformers model with all its weights, in `dtype` on `device`, as a copy that shares nothing."""
        model = copy.deepcopy(self._skeleton)
        for name, tensor in self.read(self._names).items():
            assign(model, name, tensor)
        self._share_table(model)
        return model

    def _share_table(self, model: PreTrainedModel) -> None:
        """Gives a head that shares the embedding's whole table that table; one that reads factors has them already."""
        if self.overlay.is_tied and self._embedding_name not in self.overlay.structures:
            table = model.get_parameter(f"{self._embedding_name}.weight")
            model.get_submodule(self._head_name).register_parameter("weight", table)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of tensors by their full names in the transformers model, on `device`, floating ones in `dtype`."""
        found: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            canonical = self._names[name]
            part = self.overlay.holder(canonical)
            if part is None:
                by_file.setdefault(self._stored(canonical).file, []).append(name)
            else:
                found[name] = self._copy(part[canonical])
        for file, its_names in by_file.items():
            # Opened anew each time: a mapping that stays open keeps every page that was read resident.
            with safe_open(file, framework="pt") as stored:
                for name in its_names:
                    found[name] = self._copy(stored.get_tensor(self.overlay.stored_name(self._names[name])))
        return found

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    def _stored(self, canonical: str) -> StoredTensor:
        return self.overlay.original.tensors[self.overlay.stored_name(canonical)]

    def _canonical_names(self) -> dict[str, str]:
        """The name of each stored tensor in the skeleton → its canonical name."""
        return {self._own_name(name): name for name in self.overlay.shapes}

    def _own_name(self, canonical: str) -> str:
        """The skeleton's name of a module or tensor: releases of transformers differ in what they call a head."""
        module, dot, rest = canonical.partition(".")
        return f"{self._head_name}{dot}{rest}" if module == self.overlay.architecture.head else canonical

    def _read_below(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self._names if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor for name, tensor in self.read(names).items()}

    def _materialise_surroundings(self) -> None:
        """Loads what lies outside blocks, embedding and head: norms, learned positions, projections of embeddings."""
        streamed = tuple(f"{part}." for part in (self.inventory.block_prefix, self._embedding_name, self._head_name))
        names = [name for name in self._names if not name.startswith(streamed)]
        for name, tensor in self.read(names).items():
            assign(self._skeleton, name, tensor)

    @contextmanager
    def _materialised(self, name: str) -> Iterator[None]:
        """Gives the embedding or head its weights for a while; an embedding that was put there has them already."""
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
        """What each block is called with beside the hidden states, for inputs [sequences, length]."""
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
        """For a while every block of the skeleton computes `forward(index, hidden, ...)` instead of its own."""
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
    def _ask_a_block(self) -> bool:
        """Whether blocks return (hidden, ...), as in some releases of transformers, or hidden alone, as in others."""
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

    def _check_repeated_head(self) -> None:
        """A tied head that the files repeat must repeat the embedding, or loading it elsewhere gives another model."""
        original, architecture = self.overlay.original, self.overlay.architecture
        names = {architecture.canonical(name): name for name in original.tensors}
        repeated = names.get(f"{architecture.head}.weight")
        if self.inventory.head is not None or repeated is None:
            return
        embedding = original.names[f"{architecture.embedding}.weight"]
        if not torch.equal(original.tensor(repeated), original.tensor(embedding)):
            raise MalformedModel(
                f"config.json ties the head to the embedding, but {repeated} and {embedding} differ in the weights."
            )


def convert_gguf(path: Path, directory: Path, rope_scaling: Mapping[str, Any] | None = None) -> None:
    """Writes the model and tokenizer of a GGUF file as safetensors in bfloat16, dequantised, into `directory`.

    `rope_scaling` is what the file says of it in transformers' terms, which transformers' own reader leaves out. The
    whole model passes through memory. Raises UnsupportedArchitecture, NoTokenizer, and MalformedModel where
    transformers cannot read the file.
    """
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    except Exception as error:  # a stranger's file makes transformers raise anything
        raise NoTokenizer(f"The tokenizer of the GGUF file {path.name} cannot be read: {error}") from error
    try:
        architecture_of(AutoConfig.from_pretrained(path.parent, **source).to_dict())
        opened = AutoModelForCausalLM.from_pretrained(path.parent, **source, **_dequantised(), dtype=torch.bfloat16)
    except (OSError, KeyError, NotImplementedError, RuntimeError) as error:
        raise MalformedModel(f"The GGUF file {path.name} cannot be read: {error}") from error
    # A model that came from GGUF refuses to be saved, so its weights move into one that did not.
    settings = {name: value for name, value in opened.config.to_dict().items() if name != "quantization_config"}
    if rope_scaling is not None:
        field = "rope_parameters" if "rope_parameters" in settings else "rope_scaling"
        settings[field] = {**(settings[field] or {}), **rope_scaling}
    model = empty_model(settings, torch.bfloat16, torch.device("cpu"))
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = opened.generation_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _dequantised() -> dict[str, Any]:
    """The option that asks for plain weights; releases of transformers that lack it always dequantise."""
    options = getattr(transformers, "GgufConfig", None)
    return {} if options is None else {"quantization_config": options(dequantize=True)}

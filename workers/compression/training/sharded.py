"""One training in several processes, each of which also holds no more than its share of what it trains.

    for checkpoint in distil(..., ranks=Sharded()):
        ...                                           # its tensors are whole, and in the leading process alone

The matrices in the blocks of teacher and student are divided by torch's FSDP2: weights, gradients and moments. A block
is whole in a process only while it computes there. What surrounds the blocks is held whole by each, since embedding and
head may be one table, and the head is run apart from the decoder.
Promise: in float32, within the precision of a sum taken in another order, the training ends where that of a single
process does; where it computes in fewer digits, within their precision. Any number of processes goes on with its
checkpoints. Tried with torch 2.13; the collectives that are derived from here exist since 2.9, in a private module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from workers.compression.training import split
from workers.compression.training.parallel import Group, together
from workers.compression.training.settings import Settings


class Sharded(Group):
    """Processes with a share of every block in the memory of each."""

    def divide(
        self, teacher: PreTrainedModel, student: PreTrainedModel, settings: Settings, compute_dtype: torch.dtype | None
    ) -> None:
        """Raises ValueError where a process would leave the others alone with the teacher."""
        if settings.cached_logits:
            raise ValueError("all processes ask a sharded teacher at once, whatever one of them has in a cache")
        mesh = init_device_mesh(student.device.type, (distributed.get_world_size(),))
        _shard(teacher, mesh)
        _shard(student, mesh, compute_dtype)

    def share(self, chosen: Tensor) -> Tensor:
        """Raises ValueError where the shares are unequal: blocks are gathered by all processes equally often."""
        processes = distributed.get_world_size()
        if len(chosen) % processes:
            raise ValueError(
                f"a step of {len(chosen)} windows cannot be divided evenly among {processes} processes, "
                "and with sharded models each computes as often as the others"
            )
        return super().share(chosen)

    def held(self, tensor: Tensor) -> Tensor:
        return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor

    def add(self, tensors: Sequence[Tensor]) -> None:
        """The gradients of shares are sums already."""
        super().add([tensor for tensor in tensors if not isinstance(tensor, DTensor)])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        shares = [self.held(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        squared = nn.utils.get_total_norm(shares).square().to(gradients[0].device)
        self.add([squared])
        return (squared + nn.utils.get_total_norm(whole).square()).sqrt()

    @torch.no_grad()
    def gathered(self, held: Tensor, parameter: Tensor) -> Tensor | None:
        """In the memory of the CPU, since many of them are kept at once."""
        whole = held
        if isinstance(parameter, DTensor):
            layout, shape = (parameter.device_mesh, parameter.placements), parameter.shape
            share = DTensor.from_local(held, *layout, shape=shape, stride=parameter.stride())
            with together():
                whole = share.full_tensor()
        return whole.to("cpu", copy=True) if self.leads else None

    @torch.no_grad()
    def scattered(self, tensors: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if self.leads:
            whole.copy_(tensors[name])
        with together():
            if isinstance(parameter, DTensor):
                return distribute_tensor(whole, parameter.device_mesh, parameter.placements).to_local()
            distributed.broadcast(whole, 0)
        return whole


def _shard(model: PreTrainedModel, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Divides the blocks of a model, whose matrices then compute in that dtype."""
    # Under autocast alone a cast copy of every matrix would stay until the backward pass.
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in split.blocks(model):
        # Norms stay whole: they are small, and one that is near 1 would hardly move in a dtype of few digits.
        vectors = {each for each in block.parameters() if each.ndim < 2}
        divided = fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=vectors)
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)
        divided.set_custom_all_gather(_AllGather())
        divided.set_custom_reduce_scatter(_ReduceScatter())
    decoder = split.decoder(model)
    surroundings = {each for each in decoder.parameters() if not isinstance(each, DTensor)}
    # The blocks are called from here, so that the next one is gathered while one computes.
    fully_shard(decoder, mesh=mesh, ignored_params=surroundings)


class _AllGather(DefaultAllGather):
    """That of FSDP, but for what is raised where a process is gone."""

    def __call__(self, *tensors: Any, **options: Any) -> distributed.Work | None:
        with together():
            return super().__call__(*tensors, **options)


class _ReduceScatter(DefaultReduceScatter):
    """That of FSDP, but for what is raised where a process is gone."""

    def __call__(self, *tensors: Any, **options: Any) -> distributed.Work:
        with together():
            return super().__call__(*tensors, **options)

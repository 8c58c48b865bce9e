"""Share one training run among several processes, each of which holds only a shard of the models.

    distil(..., parallel=Sharded())                   # checkpoints are whole, and in the leading process alone

The matrices in the blocks of teacher and student are divided by torch's FSDP2: weights, gradients and AdamW's state. A
block is whole in a process only while it computes there. Embedding, head and final norm are held whole by each process,
since embedding and head may be one table, and the head runs apart from the decoder.
Promise: in float32 the run ends where that of a single process does, within the precision of a sum taken in another
order; in bfloat16 within that of bfloat16. Any number of processes can resume from its checkpoints. Tested with torch
2.13; the collectives that are derived from here exist since 2.9, in a private module.
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
from workers.compression.training.parallel import ProcessGroup, losing_peers
from workers.compression.training.settings import DistillationSettings


class Sharded(ProcessGroup):
    """Each process holds a shard of every block and computes an equal share of every batch."""

    computes_alone = False

    def divide(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        settings: DistillationSettings,
        compute_dtype: torch.dtype | None,
    ) -> None:
        """Shard the blocks of both models, in place.

        Raises:
            ValueError: when teacher logits are to be cached: a process that finds a window in its cache would not join
                the others in computing the teacher's blocks.
        """
        if settings.teacher_top_k:
            raise ValueError("a sharded teacher is computed by all processes at once, so its logits cannot be cached")
        mesh = init_device_mesh(student.device.type, (distributed.get_world_size(),))
        _shard(teacher, mesh)
        _shard(student, mesh, compute_dtype)

    def share(self, batch: Tensor) -> Tensor:
        """Return every n-th of the sequence indices `batch` [batch_size], where n processes take part.

        Raises:
            ValueError: when the shares would be unequal: all processes have to gather the blocks equally often.
        """
        processes = distributed.get_world_size()
        if len(batch) % processes:
            raise ValueError(
                f"a batch of {len(batch)} sequences cannot be divided evenly among {processes} processes, "
                "as sharded models need"
            )
        return super().share(batch)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor

    def add(self, tensors: Sequence[Tensor]) -> None:
        # FSDP has summed the gradients of shards already.
        super().add([tensor for tensor in tensors if not isinstance(tensor, DTensor)])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        shards = [self.local(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        squared = nn.utils.get_total_norm(shards).square().to(gradients[0].device)
        self.add([squared])
        return (squared + nn.utils.get_total_norm(whole).square()).sqrt()

    @torch.no_grad()
    def gathered(self, local: Tensor, parameter: Tensor) -> Tensor | None:
        """Return a whole copy on the CPU, since many are kept at once; None in all processes but the leader."""
        whole = local
        if isinstance(parameter, DTensor):
            layout, shape = (parameter.device_mesh, parameter.placements), parameter.shape
            shard = DTensor.from_local(local, *layout, shape=shape, stride=parameter.stride())
            with losing_peers():
                whole = shard.full_tensor()
        return whole.to("cpu", copy=True) if self.leads else None

    @torch.no_grad()
    def scattered(self, tensors: Mapping[str, Tensor], key: str, parameter: Tensor) -> Tensor:
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if self.leads:
            whole.copy_(tensors[key])
        with losing_peers():
            if isinstance(parameter, DTensor):
                return distribute_tensor(whole, parameter.device_mesh, parameter.placements).to_local()
            distributed.broadcast(whole, 0)
        return whole


def _shard(model: PreTrainedModel, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> None:
    """Shard the blocks of a model, in place; their matrices then compute in `compute_dtype`."""
    # Under autocast alone a cast copy of every matrix would stay until the backward pass.
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in split.blocks(model):
        # Norms stay whole: they are small, and one near 1 would hardly move in bfloat16.
        vectors = {parameter for parameter in block.parameters() if parameter.ndim < 2}
        sharded = fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=vectors)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_custom_all_gather(_AllGather())
        sharded.set_custom_reduce_scatter(_ReduceScatter())
    decoder = split.decoder(model)
    unsharded = {parameter for parameter in decoder.parameters() if not isinstance(parameter, DTensor)}
    # The decoder calls the blocks: FSDP can then gather the next one while one computes.
    fully_shard(decoder, mesh=mesh, ignored_params=unsharded)


class _AllGather(DefaultAllGather):
    """FSDP's all-gather, which raises PeerLost when another process is gone."""

    def __call__(self, *tensors: Any, **options: Any) -> distributed.Work | None:
        with losing_peers():
            return super().__call__(*tensors, **options)


class _ReduceScatter(DefaultReduceScatter):
    """FSDP's reduce-scatter, which raises PeerLost when another process is gone."""

    def __call__(self, *tensors: Any, **options: Any) -> distributed.Work:
        with losing_peers():
            return super().__call__(*tensors, **options)

"""Weights divided over processes (FSDP2, torch's `fully_shard`), for models too large for one device.

Each process keeps a part of each weight, of its gradient and of the optimiser's state; blocks gather their weights when
they are used. States on disk hold whole tensors, so that a run may go on with another number of processes, sharded or
not.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..tokenizers.blocks import Block


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide the weights of each block, and then all others, over the processes of `mesh`; in place."""
    of_data = mesh["data_parallel"]
    for part in module.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=of_data)
    fully_shard(module, mesh=of_data)
    return module


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory; of one that is not divided, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. All processes call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as `other` is: divided in the same way, or not. All processes have the same whole one."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Norm of all elements of the tensors together, all parts included."""
    norm = torch.nn.utils.get_total_norm([own_part(tensor) for tensor in tensors])
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        squared = norm.square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
    return norm

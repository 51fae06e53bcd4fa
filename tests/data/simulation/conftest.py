"""A pretended device, to find tensors that are left on the CPU where there is no accelerator."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class Elsewhere(Tensor):
    """A tensor that says it is on DEVICE; its values are in memory."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a tensor of the pretended device is used outside of its context")


class PretendDevice(TorchDispatchMode):
    """Runs on the CPU, and refuses what an accelerator refuses: operations on tensors of two devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        is_elsewhere = any(isinstance(x, Elsewhere) for x in tensors)
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            is_elsewhere = kwargs.get("device", args[0].device) == DEVICE
        elif is_elsewhere and any(not isinstance(x, Elsewhere) and x.dim() for x in tensors):
            raise RuntimeError(f"{function}: expected all tensors on the same device")
        if kwargs.get("device") == DEVICE:
            is_elsewhere = True
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        unwrap = lambda x: x.values if isinstance(x, Elsewhere) else x  # noqa: E731
        out = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        return tree_map(lambda x: Elsewhere(x) if is_elsewhere and isinstance(x, Tensor) else x, out)


@pytest.fixture
def elsewhere() -> tuple[AbstractContextManager[Any], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A context in which tensors may be on a device apart, and what moves a tensor there and back."""
    return PretendDevice(), Elsewhere, lambda tensor: tensor.values

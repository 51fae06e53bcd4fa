"""A pretended device, to find tensors that are left on the CPU where there is no accelerator."""

import contextlib
import copy
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default)


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


def move(module: nn.Module) -> nn.Module:
    """A copy of a module on DEVICE."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else Elsewhere(buffer)
        for name, weight in part._parameters.items():
            part._parameters[name] = None if weight is None else Elsewhere(weight.data)
    return module


class PretendDevice(TorchDispatchMode):
    """Runs on the CPU, and refuses what an accelerator refuses: operations on tensors of two devices.

    As there, indices may be on the CPU.
    """

    def __enter__(self) -> Any:
        # Numbers of a list never pass the dispatcher on their way to a device.
        tensor = torch.tensor

        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if device is None or torch.device(device) != DEVICE:
                return tensor(*args, device=device, **kwargs)
            with _disable_current_modes():
                return Elsewhere(tensor(*args, **kwargs))

        self.replaced = contextlib.ExitStack()
        self.replaced.enter_context(mock.patch.object(torch, "tensor", made))
        self.replaced.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
        return super().__enter__()

    def __exit__(self, *of_error: Any) -> None:
        super().__exit__(*of_error)
        self.replaced.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in INDEXING and isinstance(args[0], Elsewhere):
            places = [x if x is None or isinstance(x, Elsewhere) else Elsewhere(x) for x in args[1]]
            args = (args[0], places, *args[2:])
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

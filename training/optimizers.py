"""Several optimisers as one, each with its own weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Optimizers(torch.optim.Optimizer):
    """Takes the steps of all `parts`; its groups and state are theirs, so that it is saved and loaded as one.

    A tensor `found_inf` other than zero means that no step is to be taken. Fused parts see to that on the device; the
    others need it read.
    """

    found_inf: Tensor | None = None

    def __init__(self, *parts: torch.optim.Optimizer):
        groups = [group | {"part": number} for number, part in enumerate(parts) for group in part.param_groups]
        super().__init__(groups, {})
        self.parts = parts

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each part; `closure` is called once, before."""
        loss = None if closure is None else closure()
        for number, part in enumerate(self.parts):
            # Loading a state makes groups and state anew.
            part.param_groups = [group for group in self.param_groups if group["part"] == number]
            part.state = self.state
            if part.defaults.get("fused"):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
            elif self.found_inf is not None and self.found_inf.item():
                continue
            part.step()
        return loss

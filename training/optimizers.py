"""Several optimisers as one, each with its own weights."""

from collections.abc import Callable
from typing import Any

import torch


class Optimizers(torch.optim.Optimizer):
    """Takes the steps of all `parts`; its groups and state are theirs, so that it is saved and loaded as one."""

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
            part.step()
        return loss

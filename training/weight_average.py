"""An exponential moving average of the weights, which often reconstructs better than the last weights do.

(Polyak & Juditsky 1992, doi 10.1137/0330046; the warm-up lets the first average forget the initial weights.)
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of a module's trained weights; they belong to a run's state."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps (from 1)."""
        share = 1 - min(self.decay, step / (10 + step))
        names = list(self.weights)
        current = dict(module.named_parameters())
        torch._foreach_lerp_([self.weights[n] for n in names], [current[n].detach() for n in names], share)

    @contextlib.contextmanager
    def lent_to(self, module: nn.Module) -> Iterator[None]:
        """Within, the module has the averages in place of its weights."""
        own = {name: weight.detach().clone() for name, weight in module.named_parameters() if name in self.weights}
        self.give_to(module)
        yield
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if name in own:
                    weight.copy_(own[name])

    @torch.no_grad()
    def give_to(self, module: nn.Module) -> None:
        """Replace the module's weights by their averages."""
        current = dict(module.named_parameters())
        for name, weight in self.weights.items():
            current[name].copy_(weight)

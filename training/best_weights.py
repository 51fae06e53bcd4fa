"""The weights of the step at which validation scored best: part of a run's state, so that it resumes exactly."""

import torch
from torch import Tensor, nn


class BestWeights:
    """A copy of a module's trained weights, and when it was taken."""

    def __init__(self, module: nn.Module):
        self.weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad
        }
        self.record = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
        """The best score so far, and its step."""

    @property
    def score(self) -> float:
        """The best score so far; minus infinity before the first."""
        return float(self.record[0])

    @property
    def step(self) -> int:
        """The step of the best score, 0 before the first."""
        return int(self.record[1])

    @torch.no_grad()
    def offer(self, module: nn.Module, score: float, step: int) -> None:
        """Take the module's weights over if the score beats the best one."""
        if score > self.score:
            self.record = torch.tensor([score, float(step)], dtype=torch.float64)
            current = dict(module.named_parameters())
            torch._foreach_copy_(list(self.weights.values()), [current[name].detach() for name in self.weights])

    @torch.no_grad()
    def give_to(self, module: nn.Module) -> None:
        """Replace the module's weights by the best ones."""
        current = dict(module.named_parameters())
        torch._foreach_copy_([current[name] for name in self.weights], list(self.weights.values()))

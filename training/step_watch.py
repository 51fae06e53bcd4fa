"""Steps that must not be taken: a loss or gradient that is not finite, or a loss far above what it was.

Judged on the device, so that no step waits for it: the optimiser is told by a tensor, and the host reads what happened
when it reads the metrics. All processes judge by the same numbers.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HORIZON, FIRST_JUDGED = 100, 50
"""Steps over which the loss is averaged, and good steps before a loss is compared with that average."""
RECENT = 64
"""Bad steps that are told apart between two reads."""
_MEAN, _NUM_GOOD, _NUM_BAD, _STEPS = 0, 1, 2, 3


class BadStepError(RuntimeError):
    """Training stopped at a step that must not be taken; the message names it and its objects."""


class StepWatch:
    """Judges each step. With `stop` every step after the first bad one is bad too, so that weights stay as it found
    them. `spike_factor`: a loss that many times the average of good steps is bad; None for any finite loss."""

    def __init__(self, device: torch.device, action: Literal["stop", "skip"], spike_factor: float | None):
        self.action = action
        self.spike_factor = spike_factor
        self.state = torch.zeros(_STEPS + RECENT, dtype=torch.float64, device=device)
        """Average loss, good steps, bad steps, and the numbers of the last RECENT of these: part of a run's state."""
        self._places = torch.arange(len(self.state), device=device)
        self._num_read = 0

    def restore(self, state: Float[Tensor, " S"]) -> None:
        """Go on from the state of an earlier run, whose bad steps were read."""
        self.state.copy_(state)
        self._num_read = int(self.state[_NUM_BAD])

    def judge(
        self, step: int, loss: Float[Tensor, ""], norm: Float[Tensor, ""], has_loss: Bool[Tensor, ""]
    ) -> Bool[Tensor, ""]:
        """Whether the step is bad, by its mean loss and gradient norm over all processes."""
        state = self.state
        mean, num_good, num_bad = state[_MEAN], state[_NUM_GOOD], state[_NUM_BAD]
        is_bad = ~(loss.isfinite() & norm.isfinite())
        if self.spike_factor is not None:
            is_bad = is_bad | ((num_good >= FIRST_JUDGED) & (loss > self.spike_factor * mean))
        is_new = is_bad
        if self.action == "stop":
            is_new, is_bad = is_bad & (num_bad == 0), is_bad | (num_bad > 0)
        counts = ~is_bad & has_loss
        moved = mean + (loss - mean) / (num_good + 1).clamp(max=HORIZON)
        named = torch.where(is_new & (self._places == _STEPS + num_bad % RECENT), float(step), state)
        self.state = torch.cat(
            [torch.stack([torch.where(counts, moved, mean), num_good + counts, num_bad + is_new]), named[_STEPS:]]
        )
        return is_bad

    def new_bad_steps(self) -> list[int]:
        """The bad steps since the last call, at most the last RECENT of them. Reads the device."""
        state = self.state.cpu()
        total = int(state[_NUM_BAD])
        first, self._num_read = max(self._num_read, total - RECENT), total
        return [int(state[_STEPS + number % RECENT]) for number in range(first, total)]

    @property
    def num_bad(self) -> int:
        """Bad steps that were read so far."""
        return self._num_read

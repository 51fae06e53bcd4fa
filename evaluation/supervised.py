"""The supervised rival: a ResNet-18 trained from nothing on the same images and labels, early-stopped on validation.

It is trained in earnest, so that to be better than it means something: turned and mirrored images, AdamW with a warm-up
and a cosine, the best state by validation error, and a record of the curve, which the report shows.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.dataset import ObservationDataset
from ..data.observations import NUM_TURNS, ImageObservation, turn_pixels
from .resnet import ResNet18
from .scores import r_squared
from .settings import SupervisedSettings

READ = 1000
"""Images read at once."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """What a training gave: predictions for the test images, in the label's unit, and its record."""

    predicted: Float[np.ndarray, " B"]
    curve: list[dict[str, Any]]
    """`step`, mean training loss since the last row, and R2 of the validation objects."""
    best_step: int
    steps: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """Plain data, without the predictions."""
        return {name: getattr(self, name) for name in ("curve", "best_step", "steps", "seconds")}


def read_images(dataset: ObservationDataset, name: str, ids: list[str]) -> Float[Tensor, "B C H W"]:
    """Images as the network sees them: flux in nanomaggies over a tenth of one, compressed by asinh; bad pixels zero.

    The scale is the same for all objects and bands, so that brightness and colour stay what they are.
    """
    found = []
    for start in range(0, len(ids), READ):
        images = dataset.read(name, ids[start : start + READ])
        if not isinstance(images, ImageObservation):
            raise ValueError(f"supervised.modality: expected images, found {name}")
        found.append(torch.asinh(images.flux / 0.1) * images.mask)
    shapes = {tuple(part.shape[1:]) for part in found}
    if len(shapes) > 1:
        raise ValueError(f"{name}: expected images of one shape, found {sorted(shapes)}")
    return torch.cat(found)


def num_steps(settings: SupervisedSettings, num_labels: int) -> int:
    """Steps of a training with so many labels."""
    batch = min(settings.batch_size, num_labels)
    return int(min(settings.max_steps, max(settings.min_steps, settings.epochs * num_labels / batch)))


def train_network(
    images: Float[Tensor, "A C H W"],
    labels: Float[np.ndarray, " A"],
    validation_images: Float[Tensor, "V C H W"],
    validation_labels: Float[np.ndarray, " V"],
    test_images: Float[Tensor, "B C H W"],
    settings: SupervisedSettings,
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda steps: None,
) -> TrainedNetwork:
    """Train on A labelled images, keep the state with the least squared error on V, and predict B."""
    start = time.monotonic()
    torch.manual_seed(seed)
    steps, batch_size = num_steps(settings, len(labels)), min(settings.batch_size, len(labels))
    scale_mean, scale = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    goal = torch.from_numpy(labels).float()
    mean, spread = goal.mean(), goal.std().clamp(min=1e-6)

    network = ResNet18(images.shape[1], settings.stem_stride).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch, but not of its types
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    is_bf16 = settings.precision == "bf16" or (settings.precision == "auto" and multiplies_bf16(device))

    def ready(pixels: Tensor) -> Tensor:
        scaled = (pixels - scale_mean) / scale
        return scaled.to(device, memory_format=torch.channels_last)

    def predict(pixels: Tensor) -> Float[np.ndarray, " B"]:
        network.eval()
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_bf16):
            answers = [network(ready(part)).float().cpu() for part in pixels.split(256)]
        network.train()
        return (torch.cat(answers) * spread + mean).double().numpy()

    every = max(1, steps // settings.num_validations)
    curve: list[dict[str, Any]] = []
    best, best_step, kept = -np.inf, 0, copy.deepcopy(network.state_dict())
    order, losses = torch.empty(0, dtype=torch.long), []
    for step in range(1, steps + 1):
        if len(order) < batch_size:
            order = torch.randperm(len(goal), generator=generator)
        rows, order = order[:batch_size], order[batch_size:]
        pixels = ready(turned(images[rows], generator))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=is_bf16):
            answers = network(pixels)
        loss = F.mse_loss(answers.float(), ((goal[rows] - mean) / spread).to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % every == 0 or step == steps:
            score = float(r_squared(predict(validation_images), validation_labels))
            curve.append({"step": step, "loss": float(torch.stack(losses).mean()), "r2": score})
            losses = []
            if score > best:
                best, best_step, kept = score, step, copy.deepcopy(network.state_dict())
        advance(1)
    network.load_state_dict(kept)
    return TrainedNetwork(predict(test_images), curve, best_step, steps, time.monotonic() - start)


def turned(images: Float[Tensor, "B C H W"], generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Each image turned by a multiple of 90 degrees and mirrored or not, at random: galaxies have no upright."""
    choice = torch.randint(NUM_TURNS, (len(images),), generator=generator)
    turned = images.clone()
    for number in range(1, NUM_TURNS):
        here = choice == number
        turned[here] = turn_pixels(images[here], number)
    return turned


def multiplies_bf16(device: str) -> bool:
    """Whether bf16 is faster than float32 there."""
    if torch.device(device).type == "cuda":
        return True
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known()) if known is not None else False

"""The supervised rival: a convolutional network trained on the same simulated images, for redshift alone."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import track
from torch import Tensor, nn

from ..data.observations import ImageObservation
from ..training.metrics_log import console


class ConvolutionalNetwork(nn.Module):
    """A small residual network: four stages, each halving the image, then a mean over pixels and two layers."""

    def __init__(self, num_bands: int, width: int = 32):
        super().__init__()
        self.stem = nn.Conv2d(num_bands, width, 3, padding=1)
        sizes = [width, width, 2 * width, 4 * width, 4 * width]
        pairs = list(itertools.pairwise(sizes))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.residuals = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, b), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1)) for _, b in pairs
        )
        self.head = nn.Sequential(nn.Linear(sizes[-1], 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Redshift of each image, in units of the training set's scatter about its mean."""
        x = self.stem(images)
        for down, residual in zip(self.downs, self.residuals, strict=True):
            x = down(x)
            x = x + residual(x)
        return self.head(x.mean((2, 3)))[:, 0]


def predict_supervised(
    train_images: ImageObservation,
    train: Float[np.ndarray, " A"],
    images: ImageObservation,
    steps: int,
    batch_size: int = 64,
) -> Float[np.ndarray, " B"]:
    """Train on `train_images` with flips and turns as augmentation, and predict the redshifts of `images`."""
    torch.manual_seed(0)
    pixels, goal = _scaled(train_images), torch.from_numpy(train).float()
    mean, spread = goal.mean(), goal.std()
    network = ConvolutionalNetwork(pixels.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in track(range(steps), description="supervised network", console=console):
        rows = torch.randint(len(goal), (batch_size,), generator=generator)
        turns = int(torch.randint(4, (1,), generator=generator))
        batch = torch.rot90(pixels[rows], turns, (2, 3))
        batch = batch.flip(3) if torch.rand(1, generator=generator) < 0.5 else batch
        loss = F.huber_loss(network(batch), (goal[rows] - mean) / spread)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (network(_scaled(images)) * spread + mean).numpy().astype(np.float64)


def _scaled(images: ImageObservation) -> Tensor:
    """Flux over noise, compressed, as the tokenizer sees it."""
    return torch.asinh(images.flux / images.noise()[..., None, None]) * images.mask / 3

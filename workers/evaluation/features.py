"""A small classifier of a job's own images: what samples are seen with. Trained here, on the training rows.

Distances in its features compare the contestants of one report; they are not those of a published FID, whose network
has seen other pictures. N batch, C channels, K classes, F features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.data import Split, normalise
from workers.evaluation.answers import as_tensor

FEATURES = 32
STEPS = 400
_BATCH = 128
_RATE = 3e-3
_ROWS_FOR_SCALE = 2000
_GRID = 2  # places a side that the features still tell apart
_SEED = 20260715


class FeatureNetwork(nn.Module):
    """images (N, C, H, W) as networks see them -> logits (N, K). Any H and W, any scale of a channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("deviation", deviation.view(1, -1, 1, 1))
        channels = len(mean)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(4, 64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(_GRID),
            nn.Flatten(),
            nn.Linear(64 * _GRID**2, FEATURES),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F): the input of the last layer."""
        return F.gelu(self.body((images - self.mean) / self.deviation))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def images_of(split: Split, rows: slice | Tensor, device: torch.device) -> Tensor:
    """Rows of a split as networks see them: (N, C, H, W) float32."""
    chosen = split.inputs[rows.numpy() if isinstance(rows, Tensor) else rows]
    return normalise(as_tensor(chosen).permute(0, 3, 1, 2).to(device)).contiguous()


def train_features(train: Split, classes: int, device: torch.device) -> FeatureNetwork:
    """The same network for the same rows: weights and batches are drawn from a fixed seed. STEPS steps of AdamW."""
    with torch.inference_mode(False), torch.enable_grad():
        few = images_of(train, slice(_ROWS_FOR_SCALE), torch.device("cpu"))
        mean, deviation = few.mean(dim=(0, 2, 3)), few.std(dim=(0, 2, 3)).clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            torch.manual_seed(_SEED)  # pyright: ignore[reportUnknownMemberType]
            network = FeatureNetwork(mean, deviation, classes).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
        generator = torch.Generator().manual_seed(_SEED)
        labels = as_tensor(train.targets)
        for step in range(STEPS):
            rows = torch.randint(len(train), (_BATCH,), generator=generator)
            loss = F.cross_entropy(network(images_of(train, rows, device)), labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            optimizer.param_groups[0]["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return network.eval()

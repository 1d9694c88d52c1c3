"""Images for training and evaluation: decoded once per node, memory-mapped, shared by every process on it."""

from workers.data.batches import Batch, batches, normalise
from workers.data.images import ImageDataset, Split, open_dataset

__all__ = ["Batch", "ImageDataset", "Split", "batches", "normalise", "open_dataset"]

"""Images for training and evaluation: decoded once per node, memory-mapped, shared by every process on it."""

from workers.data.images import ImageDataset, Split, open_dataset
from workers.data.stream import Batch, batches, normalise

__all__ = ["Batch", "ImageDataset", "Split", "batches", "normalise", "open_dataset"]

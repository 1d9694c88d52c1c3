"""Images and text for training and evaluation: decoded once per node, memory-mapped, shared by every process on it."""

from workers.data.dataset import Dataset, Split, open_dataset
from workers.data.stream import Batch, batches, first_rows, normalise

__all__ = ["Batch", "Dataset", "Split", "batches", "first_rows", "normalise", "open_dataset"]

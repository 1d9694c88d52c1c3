"""Random changes of training images, a function of (seed, task, step): zero-pad and crop, mirror."""

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import Augmentation
from workers.data.draws import draws


def augmented(
    images: NDArray[np.uint8], augment: Augmentation, *, seed: int, task: str, step: int
) -> NDArray[np.uint8]:
    """(N, H, W, C) -> (N, C, H, W), a contiguous copy, each image cropped and mirrored by its own draw."""
    padding = augment.crop_padding
    count = len(images)
    words = draws(3 * count, "augment", seed, task, step).reshape(3, count) if padding or augment.flip else None
    if words is not None and padding:
        top, left = (words[:2] % np.uint64(2 * padding + 1)).astype(np.intp)
        images = _cropped(images, padding, top, left)
    else:
        images = images.transpose(0, 3, 1, 2)
    if words is not None and augment.flip:
        mirrored = (words[2] >> np.uint64(63)).astype(bool)
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
    return np.ascontiguousarray(images)


def _cropped(
    images: NDArray[np.uint8], padding: int, top: NDArray[np.intp], left: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Zero-pad (N, H, W, C), cut each image's window at (top, left) of the padded one -> (N, C, H, W)."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width), axis=(1, 2)
    )  # (N, tops, lefts, C, H, W)
    return windows[np.arange(count), top, left]

"""Random changes of training images, a function of (seed, task, step): zero-pad and crop, mirror."""

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import Augmentation
from workers.data.draws import draws


def augmented(
    images: NDArray[np.uint8], augment: Augmentation, *, seed: int, task: str, step: int
) -> NDArray[np.uint8]:
    """(N, H, W, C) -> (N, C, H, W), a contiguous copy, each image cropped and mirrored by its own draw."""
    images = images.transpose(0, 3, 1, 2).copy()
    padding, count = augment.crop_padding, len(images)
    if not (padding or augment.flip):
        return images
    words = draws(3 * count, "augment", seed, task, step).reshape(3, count)
    if padding:
        top, left = (words[:2] % np.uint64(2 * padding + 1)).astype(np.intp)
        images = _cropped(images, padding, top, left)
    if augment.flip:
        mirrored = (words[2] >> np.uint64(63)).astype(bool)
        images[mirrored] = images[mirrored, :, :, ::-1]
    return images


def _cropped(
    images: NDArray[np.uint8], padding: int, top: NDArray[np.intp], left: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """Zero-pad (N, C, H, W) and cut each image's window at (top, left) of the padded one: (N, C, H, W)."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    cropped = np.empty_like(images)
    for image, (into, source) in enumerate(zip(cropped, padded, strict=True)):  # whole rows: 6 times a strided gather
        into[:] = source[:, top[image] : top[image] + height, left[image] : left[image] + width]
    return cropped

"""Random changes of training images, a function of (seed, task, step): zero-pad and crop, mirror."""

import numpy as np
import torch
from torch import Tensor

from dbserve.contracts.job import Augmentation
from workers.data.draws import draws


def augmented(
    images: Tensor, augment: Augmentation, *, seed: int, task: str, step: int, rows: slice, of: int
) -> Tensor:
    """(N, C, H, W) on the CPU -> the same, new: each image cropped and mirrored by its own draw.

    The images are `rows` of a batch `of` so many, and draw what they would draw in it.
    """
    padding, (height, width) = augment.crop_padding, images.shape[2:]
    words = draws(3 * of, "augment", seed, task, step).reshape(3, of)[:, rows]
    # where a window begins, seen from the image: -padding..padding; what begins beyond the image is black all the same
    shifts = (words[:2] % np.uint64(2 * padding + 1)).astype(np.int64) - padding
    tops, lefts = shifts[0].clip(-height, height).tolist(), shifts[1].clip(-width, width).tolist()
    mirrored = (words[2] >> np.uint64(63)).astype(bool) & augment.flip
    found = torch.zeros_like(images)
    source, into = images.numpy(), found.numpy()
    for image, (top, left) in enumerate(zip(tops, lefts, strict=True)):  # whole rows: far below a strided gather
        seen = source[image, :, max(top, 0) : height + min(top, 0), max(left, 0) : width + min(left, 0)]
        window = into[image, :, :, ::-1] if mirrored[image] else into[image]
        window[:, max(-top, 0) : height - max(top, 0), max(-left, 0) : width - max(left, 0)] = seen
    return found

"""Images to look at, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dbserve.contracts.report import Sample

COLUMNS = 10
ROWS = 10
_LEAST_SIDE = 28  # smaller images are enlarged by a whole factor, so that one can see them
_GAP = 2


def picture_grid(images: Sequence[Tensor], title: str, caption: str) -> Sample:
    """uint8 images (C, H, W), C of 1 or 3, row by row in a grid of COLUMNS."""
    channels, height, width = images[0].shape
    factor = -(-_LEAST_SIDE // min(height, width)) if min(height, width) < _LEAST_SIDE else 1
    rows = -(-len(images) // COLUMNS)
    step_down, step_right = height * factor + _GAP, width * factor + _GAP
    sheet = torch.full((rows * step_down - _GAP, COLUMNS * step_right - _GAP, channels), 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = index // COLUMNS * step_down, index % COLUMNS * step_right
        large = image.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        sheet[top : top + height * factor, left : left + width * factor] = large.permute(1, 2, 0)
    stream = io.BytesIO()
    pixels = sheet.numpy()  # pyright: ignore[reportUnknownMemberType]
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(stream, "PNG", optimize=True)
    return Sample(
        title=title,
        caption=caption,
        png=base64.b64encode(stream.getvalue()).decode("ascii"),
        width=sheet.shape[1],
        height=sheet.shape[0],
    )

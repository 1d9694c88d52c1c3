"""Samples as the page shows them: texts as they are, pictures only when they are what they say."""

import base64
import binascii
from dataclasses import dataclass

from dbserve.contracts.report import Comparison, Sample

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDTH = 640  # pixels of the page that a small grid is enlarged to fill


@dataclass(frozen=True)
class Picture:
    """`source` is a data: URI. `shown` is the width in pixels of the page, a whole multiple of `width`."""

    source: str
    width: int
    height: int
    shown: int
    alt: str


@dataclass(frozen=True)
class ShownSample:
    """`fault` says why something of it is left out; empty where nothing is."""

    title: str
    caption: str
    text: str | None
    picture: Picture | None
    fault: str


def shown_samples(comparison: Comparison) -> tuple[ShownSample, ...]:
    return tuple(map(_shown, comparison.samples))


def _shown(sample: Sample) -> ShownSample:
    picture = None if sample.png is None else _picture(sample, sample.png)
    fault = ""
    if sample.png is not None and picture is None:
        fault = "The picture is left out: its data are no PNG in base64."
    elif sample.png is None and sample.text is None:
        fault = "Nothing was recorded of this sample."
    elif sample.text == "" and picture is None:
        fault = "The model wrote nothing."
    return ShownSample(sample.title, sample.caption, sample.text or None, picture, fault)


def _picture(sample: Sample, data: str) -> Picture | None:
    """None for what does not decode, or does not begin as a PNG must: signature, header, a size."""
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 24:
        return None
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    if not width or not height:
        return None
    alt = f"{sample.title}. {sample.caption}".strip(". ") + f": {width} × {height} pixels"
    source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return Picture(source, width, height, width * max(1, _WIDTH // width), alt)

"""Random words that depend on nothing but what names them."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def draws(count: int, *named: object) -> NDArray[np.uint64]:
    """`count` random 64-bit words, a function of the names alone, e.g. ("order", seed, task, epoch).

    Raw Philox words: unlike numpy's Generator methods their stream is promised never to change.
    """
    digest = hashlib.sha256("\x00".join(str(name) for name in named).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)

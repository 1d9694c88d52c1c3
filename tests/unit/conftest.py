"""Fixtures of several unit tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: small networks lose more to waiting threads than they gain, above all on a busy machine."""
    import torch  # late: most unit tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

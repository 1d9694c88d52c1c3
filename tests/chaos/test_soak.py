"""A short soak: everything of the long one, in minutes."""

from pathlib import Path

import pytest

from tests.chaos.soak import soak, written

pytestmark = [pytest.mark.chaos, pytest.mark.soak, pytest.mark.timeout(1200)]


def test_nothing_is_lost_in_a_short_soak(tmp_path: Path) -> None:
    result = soak(minutes=1.5, seed=8, steps=600)
    assert result.exit_code == 0, written(result, tmp_path)
    assert result.injected.total() >= 5, "the faults did happen"
    assert result.checked["blocks' digests"] >= 2

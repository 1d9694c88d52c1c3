"""Windows of a stream: which tokens a step of training sees, and where a stream is cut into its parts."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dbserve.contracts.job import Augmentation
from dbserve.datasets.split import SplitSizes, StreamSizes, epoch_windows, stream_sizes
from dbserve.errors import ConfigInvalid, DataInvalid
from workers.data import Batch, Split, batches
from workers.data.order import ShuffledWindows


def numbered(tokens: int, sequence_length: int) -> Split:
    """Every token is its own place in the stream."""
    return Split.of_text(np.arange(tokens, dtype=np.int32), sequence_length)


def taken(split: Split, steps: int, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {"batch_size": 3, "seed": 0, "task": "block-0", "start_step": 0}
    stream = batches(split, **(arguments | changes), augment=Augmentation())
    try:
        return list(itertools.islice(stream, steps))
    finally:
        stream.close()


def test_a_batch_of_text_is_windows_of_whole_numbers_without_labels() -> None:
    (batch,) = taken(numbered(100, 7), 1)
    assert (batch.inputs.shape, batch.inputs.dtype, batch.labels) == ((3, 7), torch.int64, None)
    assert torch.equal(batch.inputs - batch.inputs[:, :1], torch.arange(7).expand(3, 7))
    with pytest.raises(ValueError, match="no labels"):
        _ = batch.targets


def test_text_of_a_short_type_keeps_its_largest_tokens() -> None:
    split = Split.of_text(np.full(64, 65_535, dtype=np.uint16), 8)
    assert taken(split, 1)[0].inputs.unique().tolist() == [65_535]


def test_an_epoch_of_text_takes_each_of_its_windows_once() -> None:
    rows = epoch_windows(100, 7)
    starts = [int(start) for batch in taken(numbered(100, 7), rows // 3) for start in batch.inputs[:, 0]]
    assert len(starts) == len(set(starts)) == rows // 3 * 3


@pytest.mark.parametrize("start", [1, 3, 4, 5, 9])
def test_text_started_later_goes_on_as_if_it_had_begun_at_the_start(start: int) -> None:
    whole, resumed = taken(numbered(100, 7), 12), taken(numbered(100, 7), 12 - start, start_step=start)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(whole[start:], resumed, strict=True))


def test_more_windows_than_an_epoch_has_are_refused() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        taken(numbered(100, 7), 1, batch_size=14)
    assert caught.value.pointer == "/training/batch_size"


def test_the_order_of_text_is_the_same_for_ever() -> None:
    """A change here would break the resume of every training that is under way."""
    order = ShuffledWindows(40, 7, seed=0, task="block-0")
    assert [order.epoch(epoch).tolist() for epoch in (0, 1)] == [[1, 22, 15, 8], [21, 7, 0, 14]]


STREAMS = st.tuples(st.integers(2, 40), st.integers(0, 400)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))


@given(STREAMS, st.integers(0, 2**63 - 1), st.text(max_size=20), st.integers(0, 10**9))
def test_windows_of_an_epoch_do_not_overlap_and_lie_inside_the_stream(
    stream: tuple[int, int], seed: int, task: str, epoch: int
) -> None:
    length, tokens = stream
    order = ShuffledWindows(tokens, length, seed=seed, task=task)
    starts = np.sort(order.epoch(epoch))
    assert len(starts) == order.rows == epoch_windows(tokens, length) >= 1
    assert starts[0] >= 0
    assert starts[-1] + length <= tokens
    assert (np.diff(starts) >= length).all()
    assert starts[0] < length


@given(STREAMS, st.integers(0, 2**63 - 1), st.text(max_size=20), st.lists(st.integers(0, 50), max_size=4))
def test_windows_of_an_epoch_are_a_function_of_seed_task_and_epoch(
    stream: tuple[int, int], seed: int, task: str, looked_at_before: list[int]
) -> None:
    length, tokens = stream
    fresh, used = (ShuffledWindows(tokens, length, seed=seed, task=task) for _ in range(2))
    for epoch in looked_at_before:
        used.epoch(epoch)
    assert np.array_equal(used.epoch(7), fresh.epoch(7))


@pytest.mark.parametrize("change", [{"seed": 1}, {"task": "block-1"}])
def test_windows_change_with_seed_task_and_epoch(change: dict[str, Any]) -> None:
    one = ShuffledWindows(2000, 7, **{"seed": 0, "task": "block-0"})
    other = ShuffledWindows(2000, 7, **({"seed": 0, "task": "block-0"} | change))
    assert not np.array_equal(one.epoch(0), other.epoch(0))
    assert not np.array_equal(one.epoch(0), one.epoch(1))


def test_every_offset_below_a_window_is_drawn_in_time() -> None:
    order = ShuffledWindows(2000, 7, seed=0, task="block-0")
    assert {int(order.epoch(epoch).min()) for epoch in range(100)} == set(range(7))


@given(st.integers(4, 10_000), st.integers(2, 40), st.floats(0.05, 0.9), st.floats(0.0, 0.8))
def test_the_parts_of_a_stream_add_up_and_hold_a_window_each(
    tokens: int, length: int, test_fraction: float, validation_fraction: float
) -> None:
    try:
        sizes = stream_sizes(
            tokens,
            test_tokens=None,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            sequence_length=length,
        )
    except DataInvalid:
        return
    assert sizes.train + sizes.validation + sizes.test == tokens
    windows = sizes.windows(length)
    assert windows.train >= 1
    assert windows.test >= 1
    assert windows.validation >= 1 or validation_fraction == 0


def test_a_test_stream_of_its_own_takes_nothing_from_the_training_stream() -> None:
    fractions = {"test_fraction": 0.5, "validation_fraction": 0.1}
    sizes = stream_sizes(1000, test_tokens=64, **fractions, sequence_length=8)
    assert sizes == StreamSizes(train=900, validation=100, test=64)
    assert sizes.windows(8) == SplitSizes(train=111, validation=12, test=8)

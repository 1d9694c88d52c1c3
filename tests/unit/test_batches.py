import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch

from dbserve.contracts.job import Augmentation
from dbserve.errors import ConfigInvalid
from workers.data import Batch, Split, batches, normalise
from workers.data.augment import augmented
from workers.data.gather import MappedImages, MappedText, ResidentSplit
from workers.data.order import Steps
from workers.data.stream import order_of, resident


def numbered(rows: int, shape: tuple[int, int, int] = (2, 3, 1)) -> Split:
    """The label of a row is its number; so is its first pixel (modulo 256)."""
    images = np.zeros((rows, *shape), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(rows) % 256
    return Split(inputs=images, labels=np.arange(rows, dtype=np.int64))


def taken(split: Split, steps: int, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "batch_size": 4,
        "seed": 0,
        "task": "block-0",
        "start_step": 0,
        "augment": Augmentation(),
    }
    stream = batches(split, **(arguments | changes))
    try:
        return list(itertools.islice(stream, steps))
    finally:
        stream.close()


def rows_of(found: list[Batch]) -> list[list[int]]:
    return [batch.targets.tolist() for batch in found]


def test_an_epoch_takes_every_row_once_and_drops_the_ragged_end() -> None:
    epoch = list(itertools.chain.from_iterable(rows_of(taken(numbered(18), 4))))
    assert len(epoch) == len(set(epoch)) == 16


def test_images_and_labels_of_a_batch_belong_together() -> None:
    (batch,) = taken(numbered(100), 1)
    assert batch.inputs.shape == (4, 1, 2, 3)
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.is_contiguous()
    assert batch.inputs[:, 0, 0, 0].tolist() == batch.targets.tolist()


def test_a_channel_of_the_shard_is_a_channel_of_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 3, 3), dtype=np.uint8)
    (batch,) = taken(Split(images, np.arange(8)), 1, batch_size=8)
    assert np.array_equal(batch.inputs.numpy(), images[batch.targets.numpy()].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("start", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("augment", [Augmentation(), Augmentation(crop_padding=1, flip=True)])
def test_a_stream_started_later_goes_on_as_if_it_had_begun_at_the_start(start: int, augment: Augmentation) -> None:
    whole = taken(numbered(18), 14, augment=augment)
    resumed = taken(numbered(18), 14 - start, start_step=start, augment=augment)
    for first, second in zip(whole[start:], resumed, strict=True):
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.inputs, second.inputs)


@pytest.mark.parametrize("change", [{"seed": 1}, {"task": "block-1"}, {"start_step": 4}])
def test_the_order_changes_with_seed_task_and_epoch(change: dict[str, Any]) -> None:
    assert rows_of(taken(numbered(16), 4)) != rows_of(taken(numbered(16), 4, **change))


def test_the_order_is_the_same_for_ever() -> None:
    """A change here would break the resume of every training that is under way."""
    assert rows_of(taken(numbered(8), 2)) == [[0, 3, 2, 1], [4, 7, 6, 5]]


def test_a_far_step_is_found_at_once() -> None:
    assert len(taken(numbered(16), 1, start_step=10**12)) == 1


def test_a_batch_larger_than_the_split_is_refused_before_any_thread_starts() -> None:
    before = threading.active_count()
    with pytest.raises(ConfigInvalid) as caught:
        batches(numbered(3), batch_size=4, seed=0, task="t", start_step=0, augment=Augmentation())
    assert caught.value.pointer == "/training/batch_size"
    assert threading.active_count() == before


def test_closing_the_stream_ends_its_thread() -> None:
    stream = batches(numbered(16), batch_size=4, seed=0, task="t", start_step=0, augment=Augmentation())
    next(stream)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "batches"]
    stream.close()
    assert not thread.is_alive()


def test_what_the_thread_raises_is_raised_to_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("the disk went away")

    monkeypatch.setattr("workers.data.stream.augmented", broken)
    with pytest.raises(OSError, match="the disk went away"):
        taken(numbered(8), 8, augment=Augmentation(flip=True))
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_images_and_labels_of_different_number_are_no_split() -> None:
    with pytest.raises(ValueError, match="8 images, but 2 labels"):
        Split(inputs=numbered(8).inputs, labels=np.arange(2))


def test_a_slow_source_is_seen_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def slow(images: Any, *_: Any, **__: Any) -> Any:
        asked.wait(0.2)
        return images

    monkeypatch.setattr("workers.data.stream.augmented", slow)
    assert taken(numbered(16), 1, augment=Augmentation(flip=True))[0].waited_seconds >= 0.15


def test_pixels_are_normalised_to_minus_one_and_one() -> None:
    found = normalise(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8))
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([[[[-1.0, 1.0, -0.6]]]]))


def test_normalising_leaves_the_batch_as_it_was() -> None:
    images = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    normalise(images)
    assert images.unique().tolist() == [7]


def test_float32_arrays_are_passed_on_as_they_are() -> None:
    latents = torch.randn(2, 4, 3, 3)
    assert normalise(latents) is latents


def a_split(kind: str) -> Split:
    random = np.random.default_rng(0)
    match kind:
        case "images":
            return Split(random.integers(0, 256, (50, 4, 6, 3), dtype=np.uint8), np.arange(50))
        case "channels first":
            stored = random.integers(0, 256, (50, 3, 4, 6), dtype=np.uint8)
            return Split(stored.transpose(0, 2, 3, 1), np.arange(50))
        case "latents":
            return Split(random.standard_normal((50, 4, 6, 5), dtype=np.float32), np.arange(50))
        case _:
            return Split.of_text(random.integers(0, 65_536, 500, dtype=np.uint16), 8)


KINDS = ["images", "channels first", "latents", "text"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, 17])
def test_a_split_that_its_device_holds_gives_the_same_batches(kind: str, start: int) -> None:
    split = a_split(kind)
    mapped = taken(split, 30, start_step=start)
    steps = Steps(order_of(split, seed=0, task="block-0"), batch_size=4)
    held = list(itertools.islice(resident(ResidentSplit(split, torch.device("cpu")), steps, start), 30))
    for one, other in zip(mapped, held, strict=True):
        assert one.inputs.dtype == other.inputs.dtype
        assert torch.equal(one.inputs, other.inputs)
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_held_whole_even_when_it_is_brought_in_portions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = a_split(kind)
    places = np.arange(40)
    whole = ResidentSplit(split, torch.device("cpu")).take(places)
    monkeypatch.setattr("workers.data.gather._UPLOAD_BYTES", 100)
    assert torch.equal(ResidentSplit(split, torch.device("cpu")).take(places)[0], whole[0])


@pytest.mark.parametrize(("kind", "expected"), [("images", 50 * 72 + 400), ("latents", 50 * 480 + 400), ("text", 2000)])
def test_the_bytes_a_split_would_take_are_known_before_it_is_held(kind: str, expected: int) -> None:
    assert ResidentSplit.bytes_of(a_split(kind)) == expected


def test_a_cached_split_is_gathered_from_without_a_copy_of_it() -> None:
    split = a_split("channels first")
    assert np.shares_memory(MappedImages(split, pin=False).images, split.inputs)
    text = a_split("text")
    assert text.tokens is not None
    assert np.shares_memory(MappedText(text, pin=False).windows, text.tokens)


def drawn(augment: Augmentation, images: Any, step: int = 0) -> Any:
    """(N, C, H, W), from and to numpy."""
    return augmented(
        torch.from_numpy(images), augment, seed=0, task="t", step=step, rows=slice(None), of=len(images)
    ).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_leaves_its_source_untouched(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, channels, 4, 5), dtype=np.uint8)
    before = images.copy()
    drawn(Augmentation(crop_padding=2, flip=True), images)
    assert np.array_equal(images, before)


def test_flipping_mirrors_about_half_of_the_images_left_to_right() -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 5), dtype=np.uint8)
    found = drawn(Augmentation(flip=True), images)
    mirrored = [np.array_equal(new, old[..., ::-1]) for new, old in zip(found, images, strict=True)]
    kept = [np.array_equal(new, old) for new, old in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_cropping_is_a_shift_over_zeros_by_at_most_the_padding() -> None:
    images = np.random.default_rng(0).integers(1, 256, (100, 1, 4, 5), dtype=np.uint8)
    found = drawn(Augmentation(crop_padding=2), images)
    shifts = set()
    for new, old in zip(found, images, strict=True):
        padded = np.pad(old, ((0, 0), (2, 2), (2, 2)))
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[:, y : y + 4, x : x + 5], new)]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 20


def test_augmentation_changes_with_the_step() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 4, 5), dtype=np.uint8)
    both = Augmentation(crop_padding=2, flip=True)
    assert np.array_equal(drawn(both, images, 3), drawn(both, images, 3))
    assert not np.array_equal(drawn(both, images, 3), drawn(both, images, 4))


def test_a_crop_that_leaves_the_image_altogether_is_black() -> None:
    images = np.full((200, 1, 2, 2), 9, dtype=np.uint8)
    found = drawn(Augmentation(crop_padding=16), images)
    assert set(np.unique(found)) == {0, 9}
    assert (found.reshape(200, -1).max(axis=1) == 0).any()


def test_the_augmentation_of_a_step_is_the_same_for_ever() -> None:
    """A change here would break the resume of every training that is under way."""
    images = np.arange(1, 13, dtype=np.uint8).reshape(2, 1, 2, 3)
    found = drawn(Augmentation(crop_padding=1, flip=True), images, 1)
    assert found.tolist() == [[[[3, 2, 1], [6, 5, 4]]], [[[11, 12, 0], [0, 0, 0]]]]

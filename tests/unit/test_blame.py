"""Which reason an attempt's error becomes."""

import errno

import pytest
import torch

from dbserve.contracts.status import Reason
from dbserve.errors import CheckpointInvalid, NonfiniteLoss, StorageError
from workers.blame import one_line, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Reason.GPU_OOM),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), Reason.GPU_OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Reason.GPU_OOM),
        (MemoryError(), Reason.HOST_OOM),
        (RuntimeError("std::bad_alloc"), Reason.HOST_OOM),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: not enough memory"), Reason.HOST_OOM),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Reason.HOST_OOM),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.WORKER_ERROR),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Reason.WORKER_ERROR),
        (NonfiniteLoss("nan"), Reason.NONFINITE_LOSS),
        (CheckpointInvalid("flipped"), Reason.CHECKPOINT_INVALID),
        (StorageError("disk full"), Reason.STORAGE_ERROR),
    ],
)
def test_an_error_has_a_reason(error: Exception, reason: Reason) -> None:
    assert reason_of(error) is reason


def test_what_torch_raises_when_the_host_has_no_memory_left_is_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 46)
    assert reason_of(raised.value) is Reason.HOST_OOM


def test_a_reason_is_told_in_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"

"""Why an attempt failed, as a reason and a line for people."""

import errno

from dbserve.contracts.status import Reason
from dbserve.errors import (
    CheckpointInvalid,
    ConfigInvalid,
    ContractMismatch,
    DataInvalid,
    NonfiniteLoss,
    StorageError,
    WorkerLost,
)

_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (DataInvalid, Reason.DATA_ERROR),
    (ConfigInvalid, Reason.CONFIG_INVALID),
    (NonfiniteLoss, Reason.NONFINITE_LOSS),
    (ContractMismatch, Reason.VERSION_MISMATCH),
    (CheckpointInvalid, Reason.CHECKPOINT_INVALID),
    (StorageError, Reason.STORAGE_ERROR),
    (WorkerLost, Reason.WORKER_LOST),
    (MemoryError, Reason.HOST_OOM),
)

# torch says these in a plain RuntimeError; the first of a kind that fits counts
_SAYINGS: tuple[tuple[str, Reason], ...] = (
    ("CUDA out of memory", Reason.GPU_OOM),
    ("CUDA error: out of memory", Reason.GPU_OOM),
    ("CUBLAS_STATUS_ALLOC_FAILED", Reason.GPU_OOM),
    ("DefaultCPUAllocator", Reason.HOST_OOM),
    ("not enough memory", Reason.HOST_OOM),
    ("std::bad_alloc", Reason.HOST_OOM),
)


def reason_of(error: Exception) -> Reason:
    """WORKER_ERROR where nothing better is known."""
    if isinstance(error, WorkerLost) and error.reason:
        return Reason(error.reason)
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return Reason.GPU_OOM
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return Reason.HOST_OOM
    if isinstance(error, RuntimeError):
        return next((reason for saying, reason in _SAYINGS if saying in str(error)), Reason.WORKER_ERROR)
    return Reason.WORKER_ERROR


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""What becomes of freed memory. Settings of malloc stay for good, so they are made in processes of their own."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from workers.allocation import KEEPING_FREED_MEMORY, keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# Arrays of 50 MB are taken, written and freed again and again by threads beside others; page faults of a pass.
CHURN = """
import resource, sys, threading
import numpy as np
from workers.allocation import keep_freed_memory

def one_pass():
    for array in [np.empty(50 << 20, np.uint8) for _ in range(3)]:
        array[::4096] = 1

def work():
    one_pass()
    one_pass()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one_pass()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults, done = [], threading.Event()
if sys.argv[1:] == ["keep"]:
    assert keep_freed_memory()
others = [threading.Thread(target=lambda: (bytearray(1000), done.wait())) for _ in range(4)]
for other in others:
    other.start()
for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
done.set()
print(*faults)
"""


def faults(*arguments: str, **environment: str) -> list[int]:
    """Of a pass in each of three threads, once memory could have been kept."""
    command = [sys.executable, "-c", CHURN, *arguments]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return [int(count) for count in ran.stdout.split()]


@glibc
def test_freed_memory_serves_the_next_arrays_in_every_thread_however_it_was_asked_for() -> None:
    assert min(faults()) > 60  # of 4 KiB or of 2 MiB each
    assert max(faults("keep")) < 20
    assert max(faults(**KEEPING_FREED_MEMORY)) < 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("it was touched"))  # pyright: ignore[reportUnknownLambdaType]
    assert not keep_freed_memory()

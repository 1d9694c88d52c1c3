"""What ends a worker that nobody else would: real processes, which must end by themselves."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.presence import birth

WATCHED = """
import sys, time
from workers import watchdog
watchdog.LOOK_SECONDS = 0.05
watchdog.end_with_parent()
print("watched", flush=True)
time.sleep(600)
"""

PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {WATCHED!r}], stdout=subprocess.PIPE, stderr=sys.stderr)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""

WEDGED = """
import sys, time
from workers import watchdog
from workers.lease import Lease
watchdog.LOOK_SECONDS = 0.02
watchdog.WEDGED_SECONDS = 0.2
beats = [0]
holding, beating = (word == "1" for word in sys.argv[1:])
watchdog.end_when_wedged(lambda: beats[0], Lease(3600.0 if holding else 0.0))
for _ in range(100):
    time.sleep(0.02)
    beats[0] += beating
print("goes on", flush=True)
"""


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as said:
        parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=said, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    born = birth(pid)
    assert born is not None
    parent.kill()
    parent.wait(20)
    parent.stdout.close()
    deadline = time.monotonic() + 30.0
    while birth(pid) == born:
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.02)
    assert "its raylet is gone" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize(
    ("lease_holds", "beats", "code", "said"),
    [
        ("0", "0", 1, "its event loop hangs"),
        ("1", "0", 0, "goes on"),
        ("0", "1", 0, "goes on"),
    ],
)
def test_a_worker_ends_whose_event_loop_hangs_while_its_lease_is_over(
    lease_holds: str, beats: str, code: int, said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WEDGED, lease_holds, beats], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stdout + ended.stderr

"""Which process a worker is, and whether it is still there: by its pid and its birth, since a pid is given again."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from dbserve.contracts.cluster import Presence

END_SECONDS = 1.0  # a killed process takes a moment to give its memory back
GPU_SECONDS = 5.0  # nvidia-smi hangs where the driver does
_STATE, _STARTTIME = 0, 19  # fields of /proc/PID/stat after the name, proc(5)


def birth(pid: int) -> float | None:
    """Seconds from the machine's start to that of the process, which no change of a clock moves.

    None: there is none, or all that is left of it is that nobody has asked how it ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_STARTTIME]) / os.sysconf("SC_CLK_TCK")


def look(pid: int, born: float | None, *, gpu: bool) -> Presence:
    """Whether the worker's process is on this machine; of a `gpu` worker also whether its GPU memory is free again."""
    if _is_worker(pid, born):
        return Presence.PRESENT
    return _on_gpu(pid) if gpu and birth(pid) is None else Presence.GONE


def end(pid: int, born: float | None) -> None:
    """Kills the worker's process if it is there, and no other. Waits for its end, but not for long."""
    if not _is_worker(pid, born):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while _is_worker(pid, born) and time.monotonic() < deadline:
        time.sleep(0.01)


def gpu_uuids(ids: Sequence[str]) -> tuple[str, ...]:
    """What the driver calls the GPUs of these indices, and what its exporter labels them with; an id that it does not
    know, or that is a UUID already, stays as it is."""
    program = shutil.which("nvidia-smi")
    if program is None or all(not each.isdecimal() for each in ids):
        return tuple(ids)
    command = [program, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return tuple(ids)
    rows = (line.partition(",") for line in asked.stdout.splitlines())
    names = {index.strip(): uuid.strip() for index, _, uuid in rows}
    return tuple(names.get(each, each) for each in ids)


def _is_worker(pid: int, born: float | None) -> bool:
    found = birth(pid)
    if found is None or born is not None:
        return found is not None and found == born
    try:  # of a record that was written before births were: Ray names its workers so
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _on_gpu(pid: int) -> Presence:
    """Whether the driver still counts memory to a process that is gone."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Presence.GONE
    command = [program, "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return Presence.UNKNOWN
    return Presence.PRESENT if str(pid) in asked.stdout.split() else Presence.GONE

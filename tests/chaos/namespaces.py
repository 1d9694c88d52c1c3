"""Hosts that are network namespaces of this machine, on one bridge: each with a name, a session directory and shared
memory of its own, and a cable that can be pulled. Needs root and iproute2.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

STOP_SECONDS = 20.0


def require() -> None:
    """Skips the test where there can be no namespaces; fails it where there have to be."""
    why = _missing()
    if why is not None and os.environ.get("DBSERVE_REQUIRE_SERVERS"):
        pytest.fail(why)
    if why is not None:
        pytest.skip(why)


def _missing() -> str | None:
    """Why there can be none here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"there is no {program} (apt-get install iproute2 util-linux)"
    probe = subprocess.run(["ip", "netns", "add", f"probe-{os.getpid()}"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"no network namespace can be made here: {probe.stderr.strip()}"
    _ip("netns", "del", f"probe-{os.getpid()}")
    return None


class Host:
    """One of them. `private`: directories that are empty there, and its alone."""

    def __init__(self, name: str, address: str, link: str, private: Sequence[Path]) -> None:
        self.name = name
        self.address = address
        self._link = link
        self._private = private
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts it there, with all it starts in a session of its own."""
        mounts = [f"mount -t tmpfs private {directory}" for directory in (Path("/dev/shm"), *self._private)]
        script = " && ".join([f"hostname {self.name}", *mounts, 'exec "$@"'])
        entered = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "sh", "-c", script, "sh", *command]
        with log.open("ab") as output:
            process = subprocess.Popen(entered, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self._processes.append(process)
        return process

    def pull_the_cable(self) -> None:
        _ip("link", "set", self._link, "down")

    def plug_it_in(self) -> None:
        _ip("link", "set", self._link, "up")

    def stop(self) -> None:
        """Also what left the session."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
        inside = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in map(int, inside.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Lan:
    """The bridge, on which this machine is a host, too."""

    def __init__(self, address: str, hosts: Sequence[Host]) -> None:
        self.address = address
        self.hosts = hosts


@contextmanager
def lan(names: Sequence[str], *, private: Sequence[Path]) -> Iterator[Lan]:
    number = os.getpid() % 250
    bridge, subnet = f"dbs{number}", f"10.99.{number}"
    hosts: list[Host] = []
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for place, name in enumerate(names):
            namespace, link, inner = f"{bridge}-{name}", f"{bridge}v{place}", f"{bridge}i{place}"
            _ip("netns", "add", namespace)
            hosts.append(Host(namespace, f"{subnet}.{place + 2}", link, private))
            _ip("link", "add", link, "type", "veth", "peer", "name", inner)
            _ip("link", "set", inner, "netns", namespace)
            _ip("link", "set", link, "master", bridge, "up")
            for command in (
                ["addr", "add", f"{subnet}.{place + 2}/24", "dev", inner],
                ["link", "set", inner, "up"],
                ["link", "set", "lo", "up"],
                ["route", "add", "default", "via", f"{subnet}.1"],
            ):
                _ip("-n", namespace, *command)
        yield Lan(f"{subnet}.1", hosts)
    finally:
        for host in hosts:
            host.stop()
            subprocess.run(["ip", "netns", "del", host.name], check=False)
        subprocess.run(["ip", "link", "del", bridge], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

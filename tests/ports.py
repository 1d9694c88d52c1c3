"""Ports that nobody listens on now. Somebody else may take one before its server does: rare enough for tests."""

import contextlib
import socket


def free_port() -> int:
    """Free on every address of this machine."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """No two of them the same."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

"""A host by the very address that was checked: a name that changes its mind in between leads nowhere else."""

import socket
from typing import Any, TypedDict

import httpx


class Pinned(TypedDict):
    """What httpx builds a request from."""

    url: httpx.URL
    headers: dict[str, str]
    extensions: dict[str, Any]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host's name, or of an address in any spelling. Blocks. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def pinned(url: httpx.URL, address: str) -> Pinned:
    """A request of `url` that goes to `address`, though name and certificate stay those of the host."""
    return {
        "url": url.copy_with(host=address),
        "headers": {"host": url.netloc.decode("ascii")},
        "extensions": {"sni_hostname": url.raw_host.decode("ascii")},
    }

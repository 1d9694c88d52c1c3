"""One file of a web server, read by ranges: no redirects, no proxies, and no address but the one that was checked."""

import io
import ssl
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

import httpx

from dbserve.admission import Allowed, Location
from dbserve.datasets.reach import SETTING, reach
from dbserve.errors import AddressRefused, DataInvalid
from dbserve.pinning import pinned, resolve
from dbserve.webhooks.addresses import embedded_address, refusal, target_of

ANSWER_SECONDS = 60.0  # for one range, name and connection included: a server that drips holds up nobody for longer
LARGEST_RANGE = 8 << 20  # bytes asked for at once
BUFFER_BYTES = 1 << 20
PARTIAL_CONTENT = 206
_NOT_RANGES = "the server answers no ranges (206 Partial Content), by which shards are read"


class WebRefused(OSError):
    """The server's answer is not what was asked for."""


class WebFile(io.RawIOBase):
    """A file on a server, as it stood when it was opened: WebRefused where it changed since."""

    def __init__(self, client: httpx.Client, url: httpx.URL, address: str) -> None:
        self._client = client
        self._there = pinned(url, address)
        self._place = 0
        self._version = ""
        self.size = 0
        self._range(0, 0)

    @property
    def version(self) -> str:
        """What would differ if the file did, as far as the server says."""
        return self._version

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError("before the beginning")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = min(len(buffer), self.size - self._place, LARGEST_RANGE)
        if wanted <= 0:
            return 0
        got = self._range(self._place, self._place + wanted - 1)
        buffer[: len(got)] = got
        self._place += len(got)
        return len(got)

    def _range(self, first: int, last: int) -> bytes:
        """The bytes from `first` to `last`, both included; an empty file has none."""
        deadline = time.monotonic() + ANSWER_SECONDS
        headers = {**self._there["headers"], "range": f"bytes={first}-{last}", "accept-encoding": "identity"}
        request = self._client.build_request(
            "GET", self._there["url"], headers=headers, extensions=self._there["extensions"]
        )
        answer = self._client.send(request, stream=True)
        try:
            self._check(answer, first, last)
            got = bytearray()
            for part in answer.iter_raw():
                got += part
                if len(got) > last - first + 1:
                    raise WebRefused("the server sends more than was asked for")
                if time.monotonic() > deadline:
                    raise WebRefused(f"no answer within {ANSWER_SECONDS:g} s")
        finally:
            answer.close()
        if len(got) != last - first + 1:
            raise WebRefused("the server sends less than it says")
        return bytes(got)

    def _check(self, answer: httpx.Response, first: int, last: int) -> None:
        if answer.is_redirect:
            raise WebRefused("redirects are not followed: name where it leads")
        if answer.status_code != PARTIAL_CONTENT:
            raise WebRefused(_NOT_RANGES if answer.is_success else f"the server answers {answer.status_code}")
        span, _, size = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if span != f"{first}-{last}" or not (size.isascii() and size.isdecimal()):
            raise WebRefused(_NOT_RANGES)
        version = answer.headers.get("etag") or answer.headers.get("last-modified") or ""
        if not self.size:
            self.size, self._version = int(size), version
        elif (self.size, self._version) != (int(size), version):
            raise WebRefused("it changed while it was read")


@contextmanager
def open_web(place: Location, *, pointer: str) -> Generator[WebFile]:
    """Connects, and learns size and version. Raises DataInvalid, OSError."""
    try:
        target = target_of(place.url)
    except AddressRefused as refused:
        raise DataInvalid(f"cannot read {place.url}: its host is {refused}", pointer) from None
    addresses = _checked(target.host, target.port, place, reach(), pointer)
    limits = httpx.Timeout(ANSWER_SECONDS, connect=ANSWER_SECONDS / (1 + len(addresses)))
    with (
        _plainly(),
        httpx.Client(verify=_certificates(), follow_redirects=False, trust_env=False, timeout=limits) as to,
    ):
        yield _first_that_answers(to, target.url, addresses)


@contextmanager
def open_buffered(place: Location, *, pointer: str) -> Generator[IO[bytes]]:
    with open_web(place, pointer=pointer) as file, io.BufferedReader(file, BUFFER_BYTES) as buffered:
        yield buffered


def _checked(host: str, port: int, place: Location, allowed: Allowed, pointer: str) -> list[str]:
    """The addresses of the host, all of them fit to be asked.

    A rule that names the host may lead into a private network, and only one that names this machine to this machine;
    nothing leads to where clouds tell credentials.
    """
    named = allowed.names(place)
    try:
        found = resolve(host, port)
    except (OSError, UnicodeError):
        raise DataInvalid(f"cannot read {place.url}: the host's name has no address", pointer) from None
    for address in found:
        why = refusal(address, private_hosts=named, remedy=f"name the host in {SETTING} to allow it")
        if why is None and embedded_address(address).is_loopback and not _is_this_machine(host):
            why = "is this machine's own, which the host's name does not say"
        if why is not None:
            raise DataInvalid(f"cannot read {place.url}: its host's address {address} {why}", pointer)
    return found


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or embedded_address(host).is_loopback
    except ValueError:
        return False


def _first_that_answers(client: httpx.Client, url: httpx.URL, addresses: list[str]) -> WebFile:
    *others, last = addresses
    for address in others:
        try:
            return WebFile(client, url, address)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    return WebFile(client, url, last)


@contextmanager
def _plainly() -> Generator[None]:
    """The library's errors as OSError, without the server's own words."""
    try:
        yield
    except httpx.TimeoutException:
        raise WebRefused("the server does not answer in time") from None
    except httpx.HTTPError as error:
        raise WebRefused(f"the server cannot be read ({type(error).__name__})") from None


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()

"""Which data a job may name: an allow-list of schemes and prefixes, held against a URI's canonical form. Pure.

Whoever submits a job chooses what this service and its workers open: files of theirs, and addresses in their network.
What a name means is settled here, once; a name that two readers could understand in two ways is refused.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

LOCAL, BUILTIN = "file", "builtin:"
WEB = ("http", "https")
# Several names of one store: a rule for one of them is a rule for all.
STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
MEMORY = "memory"  # of this very process: nothing of it is anywhere else
SCHEMES = (LOCAL, MEMORY, *STORES, *WEB)

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_ASCII_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_AZURE = re.compile(r"[a-z0-9-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net")
_PORT = re.compile(r"[0-9]{1,5}")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MOST_DECODINGS = 8  # of a path that was percent-encoded again and again


class Unclear(ValueError):
    """The name is none, or could be understood in two ways. The message does not repeat it: it may hold a password."""


class Location(NamedTuple):
    """A name in canonical form. Local paths are as they were given: what they lead to, the disk alone can say."""

    scheme: str  # lower case
    host: (
        str  # of http(s) its host, lower case, with the port unless it is the scheme's; of a store its bucket; "": none
    )
    path: str  # of a URL it begins with a slash, and is as it was given

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"


@dataclass(frozen=True)
class Rule:
    """Everything of a scheme, of one host of it, or below one path of that."""

    scheme: str
    host: str = ""
    path: str = "/"

    def __str__(self) -> str:
        return self.path if self.scheme == LOCAL and self.path != "/" else f"{self.scheme}://{self.host}{self._tail}"

    @property
    def _tail(self) -> str:
        return "" if self.path == "/" else self.path

    def permits(self, place: Location) -> bool:
        """Prefixes end at a slash: /data is no prefix of /database."""
        same = STORES.get(place.scheme, place.scheme) == STORES.get(self.scheme, self.scheme)
        if not same or self.host not in ("", place.host):
            return False
        return place.path == self.path or place.path.startswith(self.path.rstrip("/") + "/")


@dataclass(frozen=True)
class Allowed:
    """What jobs may name besides the data sets that dbserve brings along."""

    rules: tuple[Rule, ...]

    def __str__(self) -> str:
        """As DBSERVE_DATA_ALLOW has it."""
        return ",".join([BUILTIN, *map(str, self.rules)])

    def permits(self, place: Location) -> bool:
        return any(rule.permits(place) for rule in self.rules)

    def names(self, place: Location) -> bool:
        """Whether a rule names the very host: then it is the operator who leads there, not the job."""
        return any(rule.host and rule.permits(place) for rule in self.rules)

    def local_roots(self) -> tuple[str, ...]:
        return tuple(rule.path for rule in self.rules if rule.scheme == LOCAL)

    def with_local(self, *directories: str) -> "Allowed":
        return Allowed((*self.rules, *(Rule(LOCAL, "", directory) for directory in directories)))


NOTHING = Allowed(())
# Of a service that this machine's user alone can reach: whatever that user could open anyway. No address of a network.
AT_HOME = Allowed(tuple(Rule(scheme) for scheme in (LOCAL, MEMORY, *dict.fromkeys(STORES.values()))))


def parse_allowed(text: str) -> Allowed:
    """The rules of a comma-separated list: schemes (`s3://`), prefixes (`s3://bucket/sets`, `https://host/`) and
    absolute directories. `builtin:` may be among them and is allowed anyway.

    Raises ValueError naming the part that is none of these.
    """
    parts = [part.strip() for part in text.split(",")]
    return Allowed(tuple(_rule(part) for part in parts if part not in ("", BUILTIN)))


def _rule(part: str) -> Rule:
    match = _URL.fullmatch(part)
    if match is not None and not match["rest"].strip("/"):
        scheme = match["scheme"].lower()
        if scheme in SCHEMES:
            return Rule(scheme)
        raise ValueError(f"{part!r}: the schemes are {', '.join(SCHEMES)}")
    if match is None and not part.startswith("/"):
        raise ValueError(
            f"{part!r} is neither a scheme (s3://), nor a prefix (s3://bucket/sets), nor a directory (/data)"
        )
    try:
        place = locate(part)
    except Unclear as unclear:
        raise ValueError(f"{part!r}: {unclear}") from None
    path = place.path.rstrip("/") or "/"
    if any(character in path for character in "*?["):
        raise ValueError(f"{part!r}: a prefix is no pattern")
    return Rule(place.scheme, place.host, path)


def locate(uri: str) -> Location:
    """A URI or a path in canonical form. Raises Unclear."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in uri):
        raise Unclear("it holds a control character")
    match = _URL.fullmatch(uri)
    if match is None:
        return Location(LOCAL, "", uri)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme not in SCHEMES:  # chained ones (simplecache::http) among them
        raise Unclear(f"{scheme}:// is not spoken; the schemes are {', '.join(SCHEMES)}")
    host, slash, path = rest.partition("/")
    path = slash + path
    if scheme == LOCAL:
        if host:
            raise Unclear("a file URL names no host: write file:///path, or the path alone")
        return Location(LOCAL, "", path)
    _refuse_crooked(path)
    if scheme in WEB and any(character in path for character in "?#*["):
        raise Unclear("a URL of the web names one file: no query, no fragment, no pattern")
    return Location(scheme, _host(scheme, host), path or "/")


def _refuse_crooked(path: str) -> None:
    """What some reader could take for another path than it looks, however often it decodes."""
    decoded = path
    for _ in range(_MOST_DECODINGS):
        if (once := unquote(decoded)) == decoded:
            break
        decoded = once
    else:
        raise Unclear("its path is percent-encoded too often")
    segments = decoded.split("/")[1:]
    if any(segment in (".", "..") for segment in segments):
        raise Unclear("its path holds . or ..")
    if "" in segments[:-1]:
        raise Unclear("its path holds an empty part (//)")
    if "\\" in decoded or any(ord(character) < 0x20 or ord(character) == 0x7F for character in decoded):
        raise Unclear("its path holds a backslash or a control character")


def _host(scheme: str, host: str) -> str:
    if STORES.get(scheme) == "az" and _AZURE.fullmatch(host):
        return host
    if "@" in host:
        raise Unclear("it holds a user or a password: credentials belong into the environment of the workers")
    if scheme not in WEB:
        if host and not _ASCII_NAME.fullmatch(host):
            raise Unclear("its bucket is no plain name")
        return host
    name, port = _split_port(host)
    if not name:
        raise Unclear("it names no host")
    if port and not (_PORT.fullmatch(port) and 1 <= int(port) <= 65_535):
        raise Unclear("its port is none")
    name = name.lower()
    if name.startswith("["):
        try:
            if "%" in name:
                raise ValueError("of one interface of one machine")
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            raise Unclear("its host is no address of IPv6") from None
    else:
        name = name.removesuffix(".")
        if not _ASCII_NAME.fullmatch(name) or ".." in name:  # percent-encoded and Unicode names among the others
            raise Unclear("its host is no plain name")
    return name if not port or int(port) == _DEFAULT_PORTS[scheme] else f"{name}:{int(port)}"


def _split_port(host: str) -> tuple[str, str]:
    if host.startswith("["):
        name, bracket, port = host.partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise Unclear("its host is no address of IPv6")
        return name + "]", port[1:]
    name, _, port = host.partition(":")
    return name, port

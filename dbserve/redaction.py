"""What must never be read in a log: the secrets that a process knows of, and what looks like one.

Pure but for the files that variables name. Every pattern takes time linear in the text: strangers write some of it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
SHORTEST = 4  # characters: a shorter secret is hidden only where a pattern finds it, or every other word would be
SHORT, REMEMBERED = 80, 2048  # characters; so many texts: names, routes and addresses come again and again
LARGEST_FILE = 64 * 1024  # bytes of a file that holds a secret

_NAMES = (
    r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|(?:access|secret|private|signing|account)[_-]?key(?:[_-]?id)?"
    r"|credentials?|signature"
)
_BETWEEN = (
    r"""(?:["']\s{0,3},\s{0,3}b?(?=["'])|\\?["']?\s{0,3}(?:=>|[:=])\s{0,3}(?:b(?=["']))?)"""  # of a name and its value
)
_NAMED = re.compile(rf"""((?:{_NAMES}){_BETWEEN})(?:\\?"[^"]*"?|\\?'[^']*'?|[^\s"'&,;)}}\]]+)""", re.IGNORECASE)
_HEADER = re.compile(
    rf"""((?:authorization|cookie){_BETWEEN})(?:\\?"[^"\r\n]*"?|\\?'[^'\r\n]*'?|digest\s[^\r\n]*|[^"'\r\n]*)""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s{1,3})[\w.~+/=-]{8,}", re.IGNORECASE)
_MADE_UP = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)[A-Z0-9]{16}\b|(?:gh[pousr]_|hf_|whsec_|dbs_|xox[abp]-|sk-)[\w/+=-]{12,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}KEY-----|\Z)", re.DOTALL)
# One quick look that nearly every line stops at.
_SUSPECT = re.compile(
    r"://|passw|passph|secret|token|key|credential|signature|authorization|cookie|bearer"
    r"|akia|asia|gh[pousr]_|hf_|whsec_|dbs_|xox|sk-|eyj",
    re.IGNORECASE,
)
_RUN = re.compile(r"""[^\s"'<>`]*""")
_SECRET_NAME = re.compile(rf"(?:{_NAMES}|authorization|cookie)$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|PASSPHRASE|SECRETS?|TOKEN|API_?KEYS?|(?:ACCESS|PRIVATE|SIGNING|ACCOUNT|SCRAPE)_KEY|CREDENTIALS?)(?:_|$)"
)
_NUMBER = re.compile(r"[\d.e+-]+")
_ORDINARY = re.compile(r"(?:true|false|yes|no|on|off|none|null|token|\d{1,5})", re.IGNORECASE)


class Redactor:
    """Text without the given secrets, however they are spelled, and without what looks like one.

    It can be written as UTF-8 whatever it was: the name of a file need not be.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {spelled for secret in secrets for spelled in _spellings(secret) if len(spelled) >= SHORTEST}
        self._spellings = sorted(spellings, key=len, reverse=True)  # the longest first: one may hold another
        self._short = lru_cache(REMEMBERED)(self._redacted)
        self.hides_numbers = any(_NUMBER.fullmatch(spelled) for spelled in spellings)

    def __call__(self, text: str) -> str:
        return self._short(text) if len(text) <= SHORT else self._redacted(text)

    def _redacted(self, text: str) -> str:
        text = text.encode("utf-8", "backslashreplace").decode()
        for spelled in self._spellings:
            if spelled in text:
                text = text.replace(spelled, HIDDEN)
        if _SUSPECT.search(text) is None:
            return text
        if "://" in text:
            text = _without_credentials(text)
        text = _PRIVATE_KEY.sub(HIDDEN, text)
        text = _HEADER.sub(rf"\1{HIDDEN}", text)
        text = _NAMED.sub(rf"\1{HIDDEN}", text)
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
        return _MADE_UP.sub(HIDDEN, text)


@lru_cache(REMEMBERED)
def names_a_secret(name: str) -> bool:
    """Whether the value of a field of this name is hidden, whatever it is."""
    return _SECRET_NAME.search(name) is not None


def known_secrets(environment: Mapping[str, str], *urls: str) -> set[str]:
    """The secrets in a process's environment, in the files that it names, and in the URLs."""
    found = {secret for url in urls for secret in _passwords(url)}
    for name, value in environment.items():
        found.update(_passwords(value))
        if name.upper().endswith("_HEADERS"):  # OpenTelemetry's: name=value,...
            found.update(unquote(pair.partition("=")[2]) for pair in value.split(","))
        if _SECRET_VARIABLE.search(name.upper()) is None:
            continue
        if name.upper().endswith(("_PATH", "_FILE")):
            found.update(filter(None, (_content(Path(value)),)))
        elif not name.upper().endswith(("_URL", "_URI", "_ENDPOINT")):
            found.update((value, *value.split(",")))  # several API keys are one variable
    stripped = (secret.strip() for secret in found)
    return {secret for secret in stripped if len(secret) >= SHORTEST and not _ORDINARY.fullmatch(secret)}


def _spellings(secret: str) -> Iterator[str]:
    """As it is, and as URLs, Python and JSON write it."""
    yield secret
    if secret.isascii() and secret.isalnum():
        return
    for safe in ("", "/"):
        quoted = quote(secret, safe=safe, errors="surrogateescape")
        yield quoted
        yield re.sub("%..", lambda escape: escape[0].lower(), quoted)
    yield quote_plus(secret, errors="surrogateescape")
    yield unquote(secret)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield ascii(secret)[1:-1]
    yield repr(secret.encode(errors="surrogateescape"))[2:-1]
    inner = secret
    for _ in range(2):  # what an exception repeats by its repr is often repeated by another one
        inner = repr(inner)[1:-1]
        yield inner
        yield inner.replace("'", "\\'")


def _without_credentials(text: str) -> str:
    """URLs without their user and password."""
    first, *rest = text.split("://")
    shown = [first]
    for piece in rest:
        end = _credentials_end(piece)
        shown.append(f"{HIDDEN}@{piece[end:]}" if end else piece)
    return "://".join(shown)


def _passwords(value: str) -> Iterator[str]:
    """What the URLs in a text carry: passwords, lone user names (which are tokens), parameters that name a secret."""
    for piece in value.split("://")[1:]:
        if end := _credentials_end(piece):
            user, colon, password = piece[: end - 1].partition(":")
            secret = password if colon else user
            yield from (secret, unquote(secret))
        for name, _, given in (pair.partition("=") for pair in piece.partition("?")[2].split("&")):
            if given and names_a_secret(name):
                yield from (given, unquote(given))


def _credentials_end(piece: str) -> int:
    """How long the credentials are, their @ included, at the beginning of what follows `://`; 0: there are none.

    A password should have no slash in it, but people write what they like.
    """
    found = _RUN.match(piece)
    run = found[0] if found else ""
    authority = re.split(r"[/?#]", run, maxsplit=1)[0]
    if "@" in authority:
        return authority.rindex("@") + 1
    _, colon, port = authority.partition(":")
    return run.rindex("@") + 1 if colon and not port.isdecimal() and "@" in run else 0


def _content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE).decode(errors="replace").strip()
    except (OSError, ValueError):
        return None

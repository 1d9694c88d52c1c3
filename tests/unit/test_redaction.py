"""No secret is in a log line: those that are configured, however they are spelled, and what looks like one."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dbserve.logs import LineFormatter, secrets_of
from dbserve.redaction import Redactor, known_secrets
from dbserve.settings import read_settings

KEY = "k3y-of-sixteen-or-more"


def line(redactor: Redactor, message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> str:
    """A line as a process writes it."""
    told = (type(error), error, error.__traceback__) if error else None
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "f", 1, message, arguments, told, extra=extra)
    return LineFormatter(redactor).format(record)


def strings_in(value: object) -> Iterator[str]:
    match value:
        case dict():
            for name, item in value.items():
                yield from (name, *strings_in(item))
        case list():
            for item in value:
                yield from strings_in(item)
        case str():
            yield value
        case _:
            yield json.dumps(value)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def noted(secret: str) -> Exception:
    error = ValueError("refused")
    error.add_note(f"with {secret}")
    return error


# Ways in which code has been seen to let a secret out.
OCCURRENCES: dict[str, Callable[[Redactor, str], str]] = {
    "message": lambda hide, secret: line(hide, f"logged in with {secret} at once"),
    "argument": lambda hide, secret: line(hide, "logged in with %s", secret),
    "repr": lambda hide, secret: line(hide, "logged in with %r", secret),
    "bytes": lambda hide, secret: line(hide, "header %r", (b"x-sent", secret.encode())),
    "list": lambda hide, secret: line(hide, "arguments %s", ["--with", secret]),
    "repr of repr": lambda hide, secret: line(hide, "%s", [repr(secret)]),
    "argument that does not fit": lambda hide, secret: line(hide, "%d", secret),
    "exception": lambda hide, secret: line(hide, "failed", error=raised(ValueError(secret))),
    "cause": lambda hide, secret: line(hide, "failed", error=raised(ValueError("x"), cause=KeyError(secret))),
    "repr of exception": lambda hide, secret: line(hide, "failed: %r", OSError(1, secret)),
    "note": lambda hide, secret: line(hide, "failed", error=raised(noted(secret))),
    "field": lambda hide, secret: line(hide, "sent", given=secret),
    "field inside": lambda hide, secret: line(hide, "sent", given={"a": [1, {"b": secret}]}),
    "name": lambda hide, secret: line(hide, "sent", given={secret: 1}),
    "object": lambda hide, secret: line(hide, "sent", given=Path(f"/{secret}")),
    "url": lambda hide, secret: line(hide, "to %s", f"https://host/path?with={quote(secret, safe='')}&more=1"),
    "json": lambda hide, secret: line(hide, json.dumps({"with": secret})),
    "number": lambda hide, secret: line(
        hide, "sent", given=int(secret) if secret.isascii() and secret.isdigit() else 0
    ),
}


def readings(text: str) -> Iterator[str]:
    """The text, and what it says to whoever undoes the escapes of URLs, Python and JSON."""
    yield text
    yield unquote(text)
    yield unquote_plus(text)
    for _ in range(2):
        with contextlib.suppress(UnicodeError):
            text = text.encode("ascii", "backslashreplace").decode("unicode_escape")
            yield text
            yield text.encode("latin-1").decode()


AWKWARD = st.text(st.sampled_from("abcXYZ019é'\"\\%/+&=@:\n\x1b \u2028"), min_size=8, max_size=20)
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=40)
DIGITS = st.from_regex("[1-9][0-9]{8,12}", fullmatch=True)


@pytest.mark.parametrize("occurrence", OCCURRENCES)
@settings(max_examples=40)
@given(secret=AWKWARD | ANY | DIGITS)
def test_a_configured_secret_is_in_no_line_however_it_occurs(occurrence: str, secret: str) -> None:
    assume(secret.strip() == secret and set(secret) != {"*"})
    hide = Redactor(known_secrets({"AWS_SECRET_ACCESS_KEY": secret}))
    assume(secret not in OCCURRENCES[occurrence](hide, "00000"))  # as a part of the word "exception", say
    written = OCCURRENCES[occurrence](hide, secret)
    assert "\n" not in written
    for text in strings_in(json.loads(written)):
        assert not any(secret in reading for reading in readings(text))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Redis at redis://:hunter2@db:6379/0 is away", "hunter2"),
        ("redis://user:p@ss@db:6379", "p@ss"),
        ("redis://:pa/ss@db:6379", "pa/ss"),
        ("https://only-a-token@example.com/repository", "only-a-token"),
        ("two: redis://:first@a,redis://:other@b", "other"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/2026, Signature=fe5f80", "fe5f80"),
        ("{'authorization': 'Bearer abcdefgh'}", "abcdefgh"),
        ("[(b'authorization', b'Bearer abcdefgh')]", "abcdefgh"),
        ('Authorization: Digest username="u", response="6629fae4"', "6629fae4"),
        ("sent bearer abcdefghijkl", "abcdefghijkl"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("AWS_SESSION_TOKEN: FwoGZXIvYXdz", "FwoGZXIvYXdz"),
        ("s3://bucket/prefix?secret_key=abc123&region=eu", "abc123"),
        ("client(password='two words', user='u')", "two words"),
        ('{"secretAccessKey": "abc123"}', "abc123"),
        ('{\\"api_key\\": \\"abc123\\"}', "abc123"),
        ("X-Amz-Security-Token=abc123", "abc123"),
        ("X-API-Key: abc123", "abc123"),
        ("Cookie: session=abc; other=def", "def"),
        ("webhook whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8"),
        ("AKIAIOSFODNN7EXAMPLE was refused", "AKIAIOSFODNN7EXAMPLE"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJzdWIiOiIxIn0"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_though_nobody_configured_it(text: str, hidden: str) -> None:
    assert hidden not in Redactor(())(text)


@pytest.mark.parametrize(
    "text",
    [
        "attempt 2 of block-0 begins",
        "8192 tokens: 16 windows of 512, max_tokens_seen=3",
        "POST http://127.0.0.1:8000/v1/jobs?after=3 took 0.1 s",
        "the checkpoint of step 8 could not be saved: s3://bucket/jobs/j1/block-0/step-8",
        "learning rate 0.003 kept of {0.001: 2.3, 0.003: 2.1}",
        "send the API key as a bearer token",
        "/work/key/tokenizer.json: no such file",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert Redactor([KEY])(text) == text


def test_a_field_that_is_named_after_a_secret_is_hidden_whatever_it_holds() -> None:
    written = json.loads(
        line(Redactor(()), "sent", api_key="abc", headers={"Authorization": ["x y"], "accept": "json"})
    )
    assert written["api_key"] == "***"
    assert written["headers"] == {"Authorization": "***", "accept": "json"}


def test_the_secrets_of_a_process_are_found_in_its_settings_its_environment_and_the_files_they_name(
    tmp_path: Path,
) -> None:
    for name in ("ray-token", "web-identity"):
        (tmp_path / name).write_text(f"content-of-{name}\n")
    chosen = read_settings(
        api_key=f"{KEY},another-{KEY}",
        scrape_key="of-the-scraper-alone",
        redis_url="redis://:p%40ss-word@db:6379/0",
        artifacts="s3://bucket/p?endpoint=http://user:of-artefacts@host",
        ray_auth_token_path=tmp_path / "ray-token",
    )
    environment = {
        "AWS_SECRET_ACCESS_KEY": "aws-secret",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "web-identity"),
        "RAY_AUTH_TOKEN": "token-of-ray",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-one=of-the-collector,two=2",
        "DATABASE_URL": "postgres://u:of-a-database@h/d",
        "TOKENIZERS_PARALLELISM": "false",
        "GIT_TOKEN": "true",
        "HOME": "/home/somebody",
    }
    assert secrets_of(chosen, environment) == {
        KEY,
        f"another-{KEY}",
        f"{KEY},another-{KEY}",
        "of-the-scraper-alone",
        "p%40ss-word",
        "p@ss-word",
        "of-artefacts",
        "content-of-ray-token",
        "aws-secret",
        "content-of-web-identity",
        "token-of-ray",
        "of-the-collector",
        "of-a-database",
    }


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Redactor(["abcd", "abcdefgh"])("abcdefgh abcd") == "*** ***"

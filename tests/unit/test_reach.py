"""What a process may read, on real directories with real links, and from a real web server that plays tricks."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbserve import pinning
from dbserve.admission import AT_HOME, NOTHING, parse_allowed
from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.conversion import read_source
from dbserve.datasets import inspect, reach
from dbserve.datasets import web as web_reading
from dbserve.datasets.reach import limit_reach
from dbserve.datasets.shards import find_shards, open_shard, read_file, shard_version
from dbserve.errors import ConfigInvalid, DataInvalid
from tests.shards import pixels, write_shard
from tests.web_server import Web, web

URI = "/data/uri"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A process has one reach; the next test's is not this one's."""
    before = reach.reach()
    yield
    reach._allowed = before  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def served() -> Iterator[Web]:
    with web() as served:
        yield served


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """An allowed directory with a shard, beside one that is not allowed, and links from the one to the other."""
    allowed, outside = tmp_path / "sets", tmp_path / "outside"
    write_shard(allowed / "good/train-0.parquet", pixels(20), [0, 1] * 10)
    write_shard(outside / "train-0.parquet", pixels(20), [0, 1] * 10)
    write_shard(tmp_path / "sets-of-others/train-0.parquet", pixels(20), [0, 1] * 10)
    (allowed / "out").symlink_to(outside)
    (allowed / "mixed").mkdir()
    (allowed / "mixed/train-0.parquet").symlink_to("../good/train-0.parquet")
    (allowed / "mixed/train-1.parquet").symlink_to(outside / "train-0.parquet")
    (allowed / "within").mkdir()
    (allowed / "within/train-0.parquet").symlink_to("../good/train-0.parquet")
    (tmp_path / "alias").symlink_to(allowed)
    limit_reach(parse_allowed(str(allowed)), own=tmp_path / "cache")
    return allowed


def look(uri: str, cache_dir: Path, **more: Any) -> DataFacts:
    return inspect(DataSpec(uri=uri, **more), modality="images", cache_dir=cache_dir)


@pytest.mark.parametrize(
    "uri", ["good", "good/train-*.parquet", "good/../good", ".//good/", "within", "good/./train-0.parquet"]
)
def test_what_lies_in_an_allowed_directory_is_read_however_it_is_spelled(sets: Path, tmp_path: Path, uri: str) -> None:
    assert look(f"{sets}/{uri}", tmp_path / "cache").train_rows > 0


def test_an_allowed_directory_may_be_reached_by_a_link_to_it(sets: Path, tmp_path: Path) -> None:
    assert look(str(tmp_path / "alias/good"), tmp_path / "cache").train_rows > 0
    limit_reach(parse_allowed(str(tmp_path / "alias")), own=tmp_path / "cache")
    assert look(str(sets / "good"), tmp_path / "cache").train_rows > 0


ESCAPES = [
    *(
        "../outside",
        "../outside/*.parquet",
        "good/../../outside",
        "good/../../../../../../../etc/passwd",
        "../sets-of-others",
    ),
    *(
        "out",
        "out/train-0.parquet",
        "out/*.parquet",
        "o*t/*.parquet",
        "*/../../outside/*.parquet",
        "**/train-*.parquet",
    ),
    *("out/../good/../../outside", "mixed", "mixed/*.parquet", "mixed/train-1.parquet", "[om]*/train-*.parquet"),
    *("../sets/../outside/train-0.parquet", "./out/./train-0.parquet", "good//..//..//outside"),
]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("uri", ESCAPES)
def test_no_path_leads_out_of_an_allowed_directory(sets: Path, tmp_path: Path, scheme: str, uri: str) -> None:
    with pytest.raises(DataInvalid) as refused:
        look(f"{scheme}{sets}/{uri}", tmp_path / "cache")
    assert refused.value.pointer == URI
    assert re.search("DBSERVE_DATA_ALLOW|no file matches", str(refused.value))  # patterns follow no linked directory


@pytest.mark.parametrize(
    "uri", ["/etc/passwd", "/etc/no-such-file", "/proc/self/environ", "/dev/zero", "~/.ssh/id_rsa", "relative"]
)
def test_whether_there_is_something_outside_is_not_told(sets: Path, tmp_path: Path, uri: str) -> None:
    with pytest.raises(DataInvalid) as refused:
        look(uri, tmp_path / "cache")
    assert (
        str(refused.value)
        == f"cannot read {uri}: this service reads {reach.reach()} alone (DBSERVE_DATA_ALLOW says what)"
    )


@pytest.mark.parametrize("uri", ["mixed", "mixed/*.parquet"])
def test_a_job_may_name_less_than_this_process_may_read(sets: Path, tmp_path: Path, uri: str) -> None:
    limit_reach(AT_HOME, own=tmp_path / "cache")
    assert len(find_shards(f"{sets}/{uri}", role="train", pointer=URI)) == 2
    with pytest.raises(DataInvalid, match="DBSERVE_DATA_ALLOW"):
        find_shards(f"{sets}/{uri}", role="train", pointer=URI, allowed=parse_allowed(str(sets)))


@pytest.mark.parametrize("key", ["uri", "test_uri", "tokenizer"])
def test_every_key_that_names_data_is_held_against_the_list(sets: Path, tmp_path: Path, key: str) -> None:
    data = {"uri": str(sets / "good"), "vocabulary": "characters", key: str(tmp_path / "outside/train-0.parquet")}
    with pytest.raises(DataInvalid) as refused:
        inspect(DataSpec(**data), modality="text" if key == "tokenizer" else "images", cache_dir=tmp_path / "cache")
    assert refused.value.pointer == f"/data/{key}"


def test_a_source_is_held_against_the_list_and_so_is_what_its_files_lead_to(sets: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigInvalid) as refused:
        read_source(str(outside))
    assert refused.value.pointer == "/architecture/source"
    (sets / "network").mkdir()
    (sets / "network/config.json").symlink_to(outside / "config.json")
    with pytest.raises(ConfigInvalid, match="DBSERVE_DATA_ALLOW"):
        read_source(str(sets / "network"))


def test_a_link_that_is_turned_after_it_was_looked_at_leads_nowhere(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = sets / "within/train-0.parquet"
    really_open = os.open

    def open_later(path: str, *arguments: Any, **more: Any) -> int:
        if str(path) != str(shard):
            return really_open(path, *arguments, **more)
        descriptor = really_open(tmp_path / "outside/train-0.parquet", *arguments, **more)
        assert shard.resolve().is_relative_to(sets)  # it was turned back at once
        return descriptor

    monkeypatch.setattr(os, "open", open_later)
    with pytest.raises(DataInvalid, match="leads elsewhere now"), open_shard(str(shard), pointer=URI):
        pass


def test_the_home_of_a_user_that_there_is_none_of_is_nowhere(tmp_path: Path) -> None:
    limit_reach(AT_HOME, own=tmp_path / "cache")
    with pytest.raises(DataInvalid, match="no such user"):
        find_shards("~nobody-of-that-name/sets", role="train", pointer=URI)


def test_a_pipe_is_no_shard_and_nobody_waits_for_it(sets: Path) -> None:
    os.mkfifo(sets / "pipe.parquet")
    with pytest.raises(DataInvalid, match="is no file"), open_shard(str(sets / "pipe.parquet"), pointer=URI):
        pass


def test_what_dbserve_brings_along_is_read_where_nothing_else_is(tmp_path: Path) -> None:
    limit_reach(NOTHING, own=tmp_path / "cache")
    facts = look("builtin:digits", tmp_path / "cache")
    with open_shard(facts.train_shards[0], pointer=URI) as shard:
        assert shard.rows > 0
    with pytest.raises(DataInvalid, match="DBSERVE_DATA_ALLOW"):
        look(facts.train_shards[0], tmp_path / "cache", test_uri="s3://bucket/a")


def test_shards_are_asked_again_where_they_are_opened(sets: Path, tmp_path: Path) -> None:
    """A plan names shards; a worker whose own list is shorter reads none of them."""
    [shard] = find_shards(str(sets / "good"), role="train", pointer=URI)
    limit_reach(NOTHING, own=tmp_path / "cache")
    for read in (lambda: open_shard(shard, pointer=URI).__enter__(), lambda: shard_version(shard, pointer=URI)):
        with pytest.raises(DataInvalid, match="DBSERVE_DATA_ALLOW"):
            read()


# --- the web


def shard_bytes(tmp_path: Path) -> bytes:
    return write_shard(tmp_path / "web.parquet", pixels(20), [0, 1] * 10).read_bytes()


def test_a_shard_of_the_web_is_read_by_ranges_from_a_host_that_is_named(served: Web, tmp_path: Path) -> None:
    served.files["/sets/a.parquet"] = shard_bytes(tmp_path)
    limit_reach(parse_allowed(served.url("/sets")), own=tmp_path)
    uri = served.url("/sets/a.parquet")
    facts = look(uri, tmp_path / "cache")
    assert (facts.train_shards, facts.train_rows > 0) == ((uri,), True)
    before = shard_version(uri, pointer=URI)
    assert int(before["size"]) == len(served.files["/sets/a.parquet"])
    served.files["/sets/a.parquet"] += b"x"
    assert shard_version(uri, pointer=URI) != before


@pytest.mark.parametrize(
    "where",
    [
        *(
            "http://169.254.169.254/latest/meta-data/",
            "http://100.100.100.200/",
            "http://[fd00:ec2::254]/",
            "http://[fe80::1]/",
        ),
        *(
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://0251.0376.0251.0376/",
            "http://[::ffff:169.254.169.254]/",
        ),
        *("http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:a9fe:a9fe::]/"),
    ],
)
@pytest.mark.parametrize("rules", ["http://", "{where}"])
def test_nothing_leads_to_where_clouds_tell_their_machines_secrets(where: str, rules: str, tmp_path: Path) -> None:
    """Not even a rule that says so."""
    limit_reach(parse_allowed(rules.format(where=where)), own=tmp_path)
    with pytest.raises(DataInvalid, match=r"link-local, or a cloud's metadata|not a URL"):
        look(f"{where}a.parquet", tmp_path)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ),
        *(
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "[fd12::1]",
            "0.0.0.0",
            "[::]",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
        ),
    ],
)
def test_a_scheme_alone_leads_to_no_private_network(host: str, served: Web, tmp_path: Path) -> None:
    limit_reach(parse_allowed("http://"), own=tmp_path)
    with pytest.raises(DataInvalid, match=r"its host's address|no address|not a URL"):
        look(f"http://{host}:{served.port}/a.parquet", tmp_path)
    assert served.asked == []


@pytest.mark.parametrize("rules", ["http://", "http://innocent.example:{port}/"])
def test_a_name_that_leads_to_this_machine_is_refused_though_it_is_listed(
    rules: str, served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lead_to(monkeypatch, "127.0.0.1")
    limit_reach(parse_allowed(rules.format(port=served.port)), own=tmp_path)
    with pytest.raises(DataInvalid, match="is this machine's own"):
        look(served.url("/a.parquet", "innocent.example"), tmp_path)
    assert served.asked == []


def test_all_addresses_of_a_host_must_be_fit(served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _lead_to(monkeypatch, "93.184.215.14", "169.254.169.254")
    limit_reach(parse_allowed("http://"), own=tmp_path)
    with pytest.raises(DataInvalid, match="metadata"):
        look("http://two-faced.example/a.parquet", tmp_path)


def test_a_name_is_asked_once_and_its_address_is_what_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leads elsewhere the second time: DNS rebinding."""
    answers = iter([["127.0.0.2"], ["169.254.169.254"]])
    monkeypatch.setattr(web_reading, "resolve", lambda host, port: next(answers))
    with web("127.0.0.2") as served:
        served.files["/a.parquet"] = shard_bytes(tmp_path)
        limit_reach(parse_allowed(f"http://localhost:{served.port}/"), own=tmp_path)
        uri = served.url("/a.parquet", "localhost")
        assert read_file(uri, most=1 << 20, pointer=URI) == served.files["/a.parquet"]
        assert {host for host, _ in served.asked} == {f"localhost:{served.port}"}
        with pytest.raises(DataInvalid, match="metadata"):
            read_file(uri, most=1 << 20, pointer=URI)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_not_even_within_the_host(served: Web, tmp_path: Path, status: int) -> None:
    served.files["/secret"] = b"token"
    for number, target in enumerate(["http://169.254.169.254/latest/meta-data/", served.url("/secret"), "/secret"]):
        served.answers[f"/{number}.parquet"] = status, {"Location": target}, b""
    limit_reach(parse_allowed(served.url("/")), own=tmp_path)
    for number in range(3):
        with pytest.raises(DataInvalid, match="redirects are not followed"):
            look(served.url(f"/{number}.parquet"), tmp_path)
    assert {path for _, path in served.asked} == {"/0.parquet", "/1.parquet", "/2.parquet"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {}, b"all of it"), "no ranges"),
        ((206, {}, b"x"), "no ranges"),
        ((206, {"Content-Range": "bytes 5-5/10"}, b"x"), "no ranges"),
        ((206, {"Content-Range": "bytes 0-0/x"}, b"x"), "no ranges"),
        ((206, {"Content-Range": "bytes 0-0/10"}, b"x" * 5000), "more than was asked for"),
        ((206, {"Content-Range": "bytes 0-0/10"}, b""), "less than it says"),
        ((404, {}, b"secret words of the server"), "answers 404"),
        ((503, {}, b""), "answers 503"),
    ],
)
def test_a_server_that_answers_otherwise_is_told_apart_without_its_words(
    served: Web, tmp_path: Path, answer: tuple[int, dict[str, str], bytes], said: str
) -> None:
    served.answers["/a.parquet"] = answer
    limit_reach(parse_allowed(served.url("/")), own=tmp_path)
    with pytest.raises(DataInvalid, match=said) as refused:
        look(served.url("/a.parquet"), tmp_path)
    assert "secret words" not in str(refused.value)


def test_a_file_that_changes_while_it_is_read_is_refused(served: Web, tmp_path: Path) -> None:
    served.files["/a.parquet"] = shard_bytes(tmp_path)
    limit_reach(parse_allowed(served.url("/")), own=tmp_path)
    place = reach.admit(served.url("/a.parquet"), pointer=URI)
    with web_reading.open_web(place, pointer=URI) as file:
        served.files["/a.parquet"] = b"PAR1" * 1000
        with pytest.raises(web_reading.WebRefused, match="changed"):
            file.read(10)


def test_no_proxy_of_the_environment_is_asked(served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.files["/a.parquet"] = shard_bytes(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    limit_reach(parse_allowed(served.url("/")), own=tmp_path)
    assert look(served.url("/a.parquet"), tmp_path / "cache").train_rows > 0


def test_at_home_nothing_is_fetched_from_the_web(served: Web, tmp_path: Path) -> None:
    limit_reach(AT_HOME, own=tmp_path)
    with pytest.raises(DataInvalid, match="DBSERVE_DATA_ALLOW"):
        look(served.url("/a.parquet"), tmp_path)
    assert served.asked == []


def _lead_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name has these addresses."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(pinning.socket, "getaddrinfo", getaddrinfo)

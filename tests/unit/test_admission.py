"""Which names a job may give its data, on their canonical form: a corpus of what people try."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.admission import AT_HOME, NOTHING, SCHEMES, Allowed, Location, Unclear, locate, parse_allowed

LISTED = parse_allowed(
    "builtin:, /srv/data, s3://bucket/sets, gs://, https://data.example.org/public, http://[::1]:9000/"
)

UNCLEAR = [
    # other schemes, chained ones among them
    *(
        "ftp://host/a",
        "sftp://host/a",
        "ssh://host/a",
        "github://o:r@main/a",
        "dask://a",
        "jupyter://h/a",
        "hdfs://h/a",
    ),
    *(
        "reference://x",
        "data://text/plain,a",
        "gopher://h:6379/_FLUSHALL",
        "file+http://h/a",
        "zip://a::/srv/data/b.zip",
    ),
    *("simplecache::http://169.254.169.254/a", "filecache::s3://bucket/sets/a", "blockcache::memory://a"),
    *(
        "zip://*.parquet::s3://bucket/sets/a.zip",
        "tar://x::https://h/a.tar",
        "dir::s3://bucket/sets",
        "http+unix://x/y",
    ),
    # ways out of a prefix
    *("s3://bucket/sets/../other", "s3://bucket/../x", "s3://bucket/sets/%2e%2e/x", "s3://bucket/sets/%252e%252e/x"),
    *("s3://bucket/sets/.%2e/x", "s3://bucket/sets/..%2fx", "s3://bucket/sets/./a", "s3://bucket/sets//a"),
    *("s3://bucket/sets/..\\x", "s3://bucket/sets/%5c..%5cx", "s3://bucket/sets/%00", "s3://bucket//sets/a"),
    "s3://bucket/sets/%" + "25" * 20 + "2e%2e/x",
    # hosts that are none, or another than they look
    *(
        "http://",
        "http:///a",
        "http://user@host/a",
        "http://user:word@host/a",
        "http://a@b@host/a",
        "http://host\\@x/a",
    ),
    *(
        "http://h%6fst/a",
        "http://127%2e0%2e0%2e1/a",
        "http://①②⑦.⓪.⓪.①/a",
        "http://ｌocalhost/a",
        "http://127。0。0。1/",
    ),
    *("http://ex ample/a", "http://host:port/a", "http://host:99999/a", "http://host:0/a", "http://host:８０/a"),
    *(
        "http://[::1/a",
        "http://[::1]x/a",
        "http://[fe80::1%25eth0]/a",
        "http://[v1.x]/a",
        "http://host../a",
        "http://-h/a",
    ),
    *("https://host/a?token=secret-word", "https://host/a#b", "https://host/*.parquet", "https://host/[ab].parquet"),
    *(
        "s3://key:word@bucket/a",
        "s3://buck*et/a",
        "s3://bück/a",
        "az://c@evil.example/a",
        "abfss://c@x.blob.core.windows.net.evil.example/a",
    ),
    # files of another host
    *("file://host/etc/passwd", "file://localhost/etc/passwd", "FILE://host/a", "file://../etc/passwd"),
    *("/srv/data/a\0b", "/srv/data/a\nb", "s3://bucket/\x7f"),
]


@pytest.mark.parametrize("uri", UNCLEAR)
def test_a_name_that_could_be_understood_in_two_ways_is_refused_without_being_repeated(uri: str) -> None:
    with pytest.raises(Unclear) as refused:
        locate(uri)
    assert "word" not in str(refused.value).replace("password", "")


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("/srv/data/a", Location("file", "", "/srv/data/a")),
        ("d/a?[1].parquet", Location("file", "", "d/a?[1].parquet")),
        ("file:///srv/data", Location("file", "", "/srv/data")),
        ("S3://bucket/Sets", Location("s3", "bucket", "/Sets")),
        ("s3://bucket", Location("s3", "bucket", "/")),
        ("s3://bucket/sets/", Location("s3", "bucket", "/sets/")),
        ("HTTPS://Data.Example.ORG:443/a", Location("https", "data.example.org", "/a")),
        ("https://data.example.org./a", Location("https", "data.example.org", "/a")),
        ("http://host:0080/a", Location("http", "host", "/a")),
        ("http://host:443/a", Location("http", "host:443", "/a")),
        ("http://[0:0:0:0:0:0:0:1]:9000/a", Location("http", "[::1]:9000", "/a")),
        ("abfss://c@account.dfs.core.windows.net/a", Location("abfss", "c@account.dfs.core.windows.net", "/a")),
    ],
)
def test_a_name_has_one_canonical_form(uri: str, place: Location) -> None:
    assert locate(uri) == place


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        *(
            (uri, True)
            for uri in ("/srv/data", "/srv/data/a/b", "file:///srv/data/a", "s3://bucket/sets/a", "s3a://bucket/sets")
        ),
        *(
            (uri, True)
            for uri in ("gs://any/a", "gcs://any", "https://DATA.example.org/public/a", "http://[::1]:9000/a")
        ),
        *(
            (uri, False)
            for uri in (
                "/srv/database",
                "/srv",
                "/",
                "/etc/passwd",
                "s3://bucket/setsx",
                "s3://bucket",
                "s3://bucket2/sets/a",
            )
        ),
        *((uri, False) for uri in ("s3://bucket/sets*/a", "s3://bucket/*/a", "az://c/a", "memory://a")),
        *((uri, False) for uri in ("https://data.example.org/publicity", "http://data.example.org/public/a")),
        *(
            (uri, False)
            for uri in ("https://data.example.org:8443/public/a", "https://data.example.org.evil.example/public/a")
        ),
        *((uri, False) for uri in ("http://[::1]/a", "http://[::1]:9001/a", "http://[::2]:9000/a")),
    ],
)
def test_prefixes_end_where_a_part_of_the_path_ends(uri: str, allowed: bool) -> None:
    assert LISTED.permits(locate(uri)) is allowed


@pytest.mark.parametrize("uri", ["/a", "s3://bucket/a", "https://host/a", "memory://a"])
def test_nothing_is_nothing(uri: str) -> None:
    assert not NOTHING.permits(locate(uri))


def test_at_home_no_address_of_a_network_is_allowed_that_a_job_chooses() -> None:
    assert [scheme for scheme in SCHEMES if not AT_HOME.permits(Location(scheme, "h", "/a"))] == ["http", "https"]


def test_only_a_rule_that_names_a_host_names_it() -> None:
    rules = parse_allowed("https://,http://host/a")
    assert rules.permits(locate("https://host/a"))
    assert not rules.names(locate("https://host/a"))
    assert rules.names(locate("http://host/a/b"))


@pytest.mark.parametrize("rules", [LISTED, AT_HOME, NOTHING])
def test_rules_are_read_back_as_they_are_written(rules: Allowed) -> None:
    assert parse_allowed(str(rules)) == rules


@pytest.mark.parametrize(
    "text",
    [
        "data",
        "~/data",
        "./data",
        "ftp://host",
        "s3:",
        "*",
        "s3://*",
        "/srv/*",
        "http://user:word@host/",
        "https://host/../",
        "simplecache::s3://b",
    ],
)
def test_a_rule_that_is_none_is_refused_by_its_words(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse_allowed(f"s3://bucket,{text}")
    assert repr(text) in str(refused.value)


@given(st.text(max_size=60), st.sampled_from([*SCHEMES, "ftp", "simplecache::s3"]))
def test_whatever_is_below_a_prefix_stays_below_it(tail: str, scheme: str) -> None:
    """However it is spelled: what is allowed begins as the rule does and has no way back in it."""
    rules = parse_allowed("s3://bucket/sets,https://host/sets,gs://bucket/sets")
    try:
        place = locate(f"{scheme}://bucket/{tail}")
    except Unclear:
        return
    if rules.permits(place):
        assert place.path == "/sets" or place.path.startswith("/sets/")
        assert ".." not in place.path.split("/")

"""Who may ask for what: one table of every route. What is not in it, nobody may. Pure."""

import re
from collections.abc import Mapping, Set
from enum import StrEnum

from dbserve.contracts.key import ALL_PROJECTS, Scope


class Need(StrEnum):
    """What a route asks of its caller."""

    NOTHING = "nothing"  # not even a key
    KEY = "key"  # any that is good
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"
    SCRAPE = "scrape"  # DBSERVE_SCRAPE_KEY, or `read` of the whole deployment: it shows every project


_JOB, _BLOCK = "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/blocks/{block}"
_MODEL, _WEBHOOK, _KEY = "/v1/models/{model_id}", "/v1/webhooks/{webhook_id}", "/v1/keys/{key_id}"

NEEDS: Mapping[tuple[str, str], Need] = {
    **dict.fromkeys(
        [("GET", path) for path in ("/healthz", "/readyz", "/docs")]
        + [(method, path) for method in ("GET", "HEAD") for path in ("/", "/assets/{name}", "/openapi.json")],
        Need.NOTHING,
    ),
    ("GET", "/metrics"): Need.SCRAPE,
    ("GET", "/v1/me"): Need.KEY,
    **dict.fromkeys(
        [
            ("GET", path)
            for path in (
                *("/v1/jobs", _JOB, f"{_JOB}/blocks", _BLOCK, f"{_JOB}/checkpoints", f"{_JOB}/metrics"),
                *(f"{_JOB}/events", f"{_JOB}/logs", f"{_JOB}/live", f"{_JOB}/report", "/v1/report-schema"),
                *("/v1/models", _MODEL, f"{_MODEL}/download", "/v1/architectures", "/v1/architectures/{kind}"),
                *("/v1/webhooks", _WEBHOOK, "/v1/cluster"),
            )
        ],
        Need.READ,
    ),
    **dict.fromkeys(
        [
            *(("POST", "/v1/plans"), ("POST", "/v1/jobs"), ("DELETE", _JOB), ("POST", f"{_BLOCK}/retry")),
            *(("POST", f"{_JOB}/{wish}") for wish in ("cancel", "pause", "resume", "retry")),
            *(("POST", "/v1/webhooks"), ("DELETE", _WEBHOOK), ("POST", f"{_WEBHOOK}/test")),
        ],
        Need.SUBMIT,
    ),
    **dict.fromkeys(
        [
            *(("POST", "/v1/keys"), ("GET", "/v1/keys"), ("GET", _KEY), ("DELETE", _KEY), ("POST", f"{_KEY}/rotate")),
            ("GET", "/v1/audit"),
        ],
        Need.ADMIN,
    ),
}

CHANGES_NOTHING = frozenset({("POST", "/v1/plans")})  # though its method says that it does


_PATHS: Mapping[re.Pattern[str], list[str]] = {
    re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))): sorted(
        method for method, other in NEEDS if other == path
    )
    for path in dict.fromkeys(path for _, path in NEEDS)
}


def methods_at(path: str) -> tuple[str, ...]:
    """What may be asked of a path, by whoever may: every method, in order of the alphabet; none where nothing is."""
    return tuple(next((methods for pattern, methods in _PATHS.items() if pattern.fullmatch(path)), ()))


def missing(need: Need | None, scopes: Set[Scope], home: str, *, scrapes: bool = False) -> str | None:
    """What a caller lacks, in words; None: it may. `home`: the project of its key; `scrapes`: it is the scraper's."""
    match need:
        case None:
            return "nobody may ask for this"
        case Need.NOTHING:
            return None
        case Need.SCRAPE:
            may = scrapes or (Scope.READ in scopes and home == ALL_PROJECTS)
            return None if may else "this shows every project: it needs scope 'read' of the whole deployment"
        case Need.KEY:
            return "the scraper's key opens /metrics alone" if scrapes else None
        case _:
            return None if Scope(need.value) in scopes else f"this needs an API key with scope {need.value!r}"

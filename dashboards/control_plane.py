"""8 Control plane: the API, Redis, the reconciler, and what the metrics themselves cost."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import (
    COUNT,
    GREEN,
    ORANGE,
    RED,
    REQUESTS_PER_SECOND,
    SECONDS,
    SHARE,
    UNITLESS,
    Query,
    lines,
    number,
)
from dashboards.queries import RATE, quantile


def build() -> Dashboard:
    return board(
        "control-plane",
        "Control plane",
        "Request rate, errors and latency, Redis, how late the reconciler is, and what a scrape costs.",
        [
            Section("Now", _now()),
            Section("API", _api()),
            Section("Redis and reconciler", _behind()),
            Section("Metrics", _scrapes()),
        ],
        variables=(),
    )


def _now() -> list[Builder[Panel]]:
    return [
        number(
            "API processes",
            "Whether each answered the last scrape (alert DbserveApiDown).",
            UNITLESS,
            Query("up and on (job, instance) (last_over_time(dbserve_build_info[1h]))", "{{instance}}"),
            limits=[(1, GREEN)],
            from_colour=RED,
        ),
        number(
            "Redis",
            "Whether Redis answered each API process (alert DbserveRedisDown).",
            UNITLESS,
            Query("dbserve_redis_up", "{{instance}}"),
            limits=[(1, GREEN)],
            from_colour=RED,
        ),
        number(
            "Reconciler",
            "Time since it last told of a look at store and cluster, which it does every five seconds (alert "
            "DbserveReconcilerSilent).",
            SECONDS,
            Query("time() - max(dbserve_reconcile_last_timestamp_seconds)", "since the last look"),
            limits=[(10, ORANGE), (30, RED)],
        ),
        number(
            "Open streams",
            "Readers of events and logs, in all API processes.",
            COUNT,
            Query("sum(dbserve_sse_clients)", "streams"),
        ),
    ]


def _api() -> list[Builder[Panel]]:
    every = f"sum(rate(http_requests_total{RATE}))"
    failed = f'sum(rate(http_requests_total{{code=~"5.."}}{RATE}))'
    latency = f"sum by (le) (rate(http_request_duration_seconds_bucket{RATE}))"
    by_route = f"sum by (le, method, route) (rate(http_request_duration_seconds_bucket{RATE}))"
    return [
        lines(
            "Requests",
            "Answered requests a second by route, in all API processes.",
            REQUESTS_PER_SECOND,
            Query(f"sum by (method, route) (rate(http_requests_total{RATE}))", "{{method}} {{route}}"),
        ),
        lines(
            "Share of failed requests",
            "Answers of 5xx over all answers (alert DbserveApiErrors at 5 %). 503 while Redis is away counts.",
            SHARE,
            Query(f"({failed} or vector(0)) / {every}", "5xx"),
            limits=[(0.01, ORANGE), (0.05, RED)],
        ),
        lines(
            "Errors by route",
            "Answers of 4xx and 5xx. 401: a wrong key. 404 and 409: clients. 429: a quota. 5xx: ours.",
            REQUESTS_PER_SECOND,
            Query(f'sum by (route, code) (rate(http_requests_total{{code=~"[45].."}}{RATE}))', "{{code}} {{route}}"),
        ),
        lines(
            "Latency",
            "From a request's arrival to the first byte of its answer.",
            SECONDS,
            Query(f"histogram_quantile(0.5, {latency})", "p50"),
            Query(f"histogram_quantile(0.95, {latency})", "p95"),
            Query(f"histogram_quantile(0.99, {latency})", "p99"),
            limits=[(0.5, ORANGE), (2.5, RED)],
        ),
        lines(
            "Latency by route, p95",
            "Which route is slow. Submission scans the data set's shards, so it may take longer than the others.",
            SECONDS,
            Query(f"histogram_quantile(0.95, {by_route})", "{{method}} {{route}}"),
        ),
    ]


def _behind() -> list[Builder[Panel]]:
    reconcile = "dbserve_reconcile_duration_seconds"
    return [
        lines(
            "Redis errors",
            "Operations on Redis that failed, a second, by operation. Any, for minutes: Redis is away, full or slow.",
            "ops",
            Query(f"max by (operation) (rate(dbserve_redis_errors_total{RATE}))", "{{operation}}"),
            limits=[(0.1, RED)],
        ),
        lines(
            "Reconciler: time since its last look",
            "It looks twice a second and tells of it every five seconds. A longer gap is a hand-over between "
            "reconcilers, or Ray or Redis not answering.",
            SECONDS,
            Query("time() - max(dbserve_reconcile_last_timestamp_seconds)", "lag"),
            limits=[(10, ORANGE), (30, RED)],
        ),
        lines(
            "Reconciler: duration of a look",
            "One look and what follows from it. Above half a second, it falls behind its own rhythm; launches then "
            "come late.",
            SECONDS,
            Query(quantile(0.5, reconcile), "p50"),
            Query(quantile(0.95, reconcile), "p95"),
            limits=[(0.5, ORANGE), (5, RED)],
        ),
        lines(
            "Webhook deliveries",
            "Tries at a delivery a second, by result. Failed ones are tried again; a receiver that is away shows "
            "here first. Empty where no webhook is set.",
            "ops",
            Query(f"max by (result) (rate(dbserve_webhook_deliveries_total{RATE}))", "{{result}}"),
        ),
    ]


def _scrapes() -> list[Builder[Panel]]:
    ours = "and on (job, instance) dbserve_build_info"
    return [
        lines(
            "Duration of a scrape",
            "Of each API process. Above 0.1 s with fifty active blocks, something is slow.",
            SECONDS,
            Query(f"scrape_duration_seconds {ours}", "{{instance}}"),
            limits=[(0.1, ORANGE), (1, RED)],
        ),
        lines(
            "Series of a scrape",
            "Grows with active blocks alone; a job's series go some minutes after its end. Up to 5,000 for fifty "
            "blocks.",
            COUNT,
            Query(f"scrape_samples_scraped {ours}", "{{instance}}"),
            limits=[(5000, ORANGE)],
        ),
    ]

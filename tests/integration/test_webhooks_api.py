"""Webhooks over REST."""

import logging
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.contracts.webhook import Topic
from dbserve.store import JobStore
from dbserve.webhooks import posting
from dbserve.webhooks.signing import new_secret
from tests.integration.delivering import hook, look
from tests.integration.serving import finish, settings, submitted
from tests.receiver import receiving, signed


@pytest.fixture
async def api(redis_url: str, api_directory: Path, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an operator who allows webhooks on this machine."""
    app = create_app(settings(redis_url, api_directory, webhook_private_hosts=True), store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_a_secret_is_answered_once(api: httpx.AsyncClient, store: JobStore) -> None:
    made = (await api.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/hook", "description": "ours"})).json()
    assert made["secret"].startswith("whsec_")
    assert (made["events"], made["disabled"]) == ([topic.value for topic in Topic], None)
    for path in ("/v1/webhooks", f"/v1/webhooks/{made['id']}"):
        answer = await api.get(path)
        assert answer.status_code == 200
        assert "ours" in answer.text
        assert made["secret"] not in answer.text
        assert "secret" not in answer.text
    given = new_secret()
    second = await api.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/hook", "secret": given})
    assert (second.status_code, second.json()["secret"]) == (201, given)
    assert (await api.delete(f"/v1/webhooks/{made['id']}")).status_code == 204
    assert (await api.get(f"/v1/webhooks/{made['id']}")).json()["code"] == "webhook_not_found"
    assert [webhook.id for webhook in await store.webhooks.all()] == [second.json()["id"]]


async def test_a_webhook_shows_what_became_of_its_messages(api: httpx.AsyncClient, store: JobStore) -> None:
    with receiving(500) as receiver:
        made = (await api.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.succeeded"]})).json()
        await finish(store, await submitted(store))
        await look(store)
    shown = (await api.get(f"/v1/webhooks/{made['id']}")).json()
    [delivery] = shown["deliveries"]
    assert shown["waiting"] == 1
    assert (delivery["event"], delivery["attempt"], delivery["code"]) == ("job.succeeded", 1, 500)
    assert delivery["next_try"] > delivery["at"]


async def test_a_ping_answers_with_what_the_receiver_said(api: httpx.AsyncClient) -> None:
    with receiving(418) as receiver:
        made = (await api.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.failed"]})).json()
        said = (await api.post(f"/v1/webhooks/{made['id']}/test")).json()
        [sent] = receiver.sent
    assert (said["delivered"], said["code"], said["answer"]) == (False, 418, "heard")
    assert sent.message["type"] == "ping"
    assert sent.id == said["message_id"]
    assert signed(sent, made["secret"])


async def test_what_pings_trust_is_read_once_and_not_by_the_event_loop(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by: list[threading.Thread] = []

    def reading() -> ssl.SSLContext:
        read_by.append(threading.current_thread())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(posting.ssl, "create_default_context", reading)
    with receiving() as receiver:
        made = (await api.post("/v1/webhooks", json={"url": receiver.url})).json()
        for _ in range(2):
            assert (await api.post(f"/v1/webhooks/{made['id']}/test")).json()["delivered"]
    [reader] = read_by
    assert reader is not threading.current_thread()


async def test_the_path_of_a_url_stands_in_no_line_no_problem_and_no_delivery(
    api: httpx.AsyncClient, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dbserve")
    path = "/services/T0/B0/very-secret"
    with receiving(302, headers={"location": f"http://127.0.0.1:9{path}/there"}) as receiver:
        urls = [receiver.url.replace("/hook", path), f"http://127.0.0.1:9{path}", f"http://name.invalid{path}"]
        for number, url in enumerate(urls):
            await hook(store, url, name=f"w{number}")
        await finish(store, await submitted(store))
        await look(store)
        pings = [(await api.post(f"/v1/webhooks/w{number}/test")).json() for number in range(len(urls))]
    refused = await api.post("/v1/webhooks", json={"url": f"http://169.254.169.254{path}"})
    delivered = [(await api.get(f"/v1/webhooks/w{number}")).json()["deliveries"] for number in range(len(urls))]
    lines = [line.getMessage() for line in caplog.records if line.name.startswith("dbserve")]
    assert len(lines) >= len(urls)
    assert all(deliveries for deliveries in delivered)
    assert [told for told in (*lines, str(pings), refused.text, str(delivered)) if "very-secret" in told] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://user:hunter22@127.0.0.1/"}, "/url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "/url"),
        ({"url": "http://127.0.0.1:9/", "events": []}, "/events"),
        ({"url": "http://127.0.0.1:9/", "events": ["job.exploded"]}, "/events/0"),
        ({"url": "http://127.0.0.1:9/", "secret": "hunter22"}, "/secret"),
        ({"url": "http://127.0.0.1:9/", "sekret": "hunter22"}, "/sekret"),
        ({}, "/url"),
    ],
)
async def test_a_bad_webhook_is_refused_with_a_pointer(api: httpx.AsyncClient, body: Any, pointer: str) -> None:
    answer = await api.post("/v1/webhooks", json=body)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert "hunter22" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "10.1.2.3"])
async def test_private_hosts_are_refused_unless_the_operator_allows_them(http: httpx.AsyncClient, host: str) -> None:
    answer = await http.post("/v1/webhooks", json={"url": f"http://{host}/"})
    assert (answer.status_code, answer.json()["code"]) == (422, "address_refused")


async def test_a_webhook_that_was_never_made_is_not_known(api: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/test"), ("GET", "/a:b")):
        answer = await api.request(method, f"/v1/webhooks{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found")

"""A scrape of many blocks takes long to write down; whoever else asks meanwhile is answered."""

import asyncio
import threading

import httpx
import pytest

from dbserve.api import ops
from dbserve.metrics import HttpMetrics, Scrape, render


async def test_a_scrape_holds_up_no_other_request(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()

    def long(accept: str, counted: HttpMetrics, scrape: Scrape | None) -> tuple[bytes, str]:
        begun.set()
        assert answered.wait(10), "the other request was kept waiting"
        return render(accept, counted, scrape)

    monkeypatch.setattr(ops, "render", long)
    scraping = asyncio.create_task(http.get("/metrics"))
    await asyncio.to_thread(begun.wait, 10)
    assert (await http.get("/healthz")).status_code == 200
    answered.set()
    assert "dbserve_redis_up 1.0" in (await scraping).text

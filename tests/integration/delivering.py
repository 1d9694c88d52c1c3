"""Webhooks that are looked after: once, or in a process of its own.

`python -m tests.integration.delivering REDIS_URL CLAIM_SECONDS` delivers until it is killed.
"""

import asyncio
import sys

from dbserve.contracts.webhook import Topic, Webhook
from dbserve.store import JobStore
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster
from dbserve.webhooks.signing import new_secret


async def hook(store: JobStore, url: str, *events: Topic, name: str = "w1") -> Webhook:
    webhook = Webhook(
        id=name, url=url, events=events or tuple(Topic), secret=new_secret(), created_at=await store.clock()
    )
    await store.webhooks.add(webhook)
    return webhook


async def look(store: JobStore, poster: Poster | None = None) -> None:
    """One look of a deliverer, to the end of what it sends."""
    one = Deliverer(store, poster or Poster(private_hosts=True))
    await one.look()
    await one.settled()


async def main(redis_url: str, claim_seconds: float) -> None:
    store = JobStore.from_url(redis_url)
    await Deliverer(store, Poster(private_hosts=True), claim_seconds=claim_seconds).run(lambda: True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

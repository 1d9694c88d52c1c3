"""A deliverer in a process of its own: `python -m tests.integration.delivering REDIS_URL CLAIM_SECONDS`."""

import asyncio
import sys

from dbserve.store import JobStore
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster


async def main(redis_url: str, claim_seconds: float) -> None:
    store = JobStore.from_url(redis_url)
    await Deliverer(store, Poster(private_hosts=True), claim_seconds=claim_seconds).run(lambda: True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

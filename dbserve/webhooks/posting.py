"""One message over the wire, to an address that was checked. Blocks nobody for longer than TIMEOUT_SECONDS."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import httpx

from dbserve.contracts.webhook import Answer, Delivery, Webhook
from dbserve.errors import AddressRefused
from dbserve.pinning import pinned
from dbserve.pinning import resolve as _resolve
from dbserve.webhooks.addresses import Target, refusal, target_of
from dbserve.webhooks.schedule import retry_after_seconds
from dbserve.webhooks.signing import headers

TIMEOUT_SECONDS = 10.0  # for all of an attempt: the name, the connection, the answer
EXCERPT_BYTES = 500
ADDRESSES_TRIED = 3  # of a host that has several
RESOLVERS = 16  # threads: a name server that hangs holds up no others of this process


async def checked_addresses(target: Target, *, private_hosts: bool) -> Sequence[str]:
    """The addresses of a host, all of them safe to send to.

    Raises:
        AddressRefused: one of them is not, or the name has none.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(_resolvers(), _resolve, target.host.strip("[]"), target.port)
    except (OSError, UnicodeError):
        raise AddressRefused("the host's name has no address") from None
    for address in found:
        if (why := refusal(address, private_hosts=private_hosts)) is not None:
            raise AddressRefused(f"the host's address {address} {why}")
    return found


class Poster:
    """Sends messages. Opens a connection for each: receivers are many, and messages few.

    Making one reads the certificates that this machine trusts, which takes tens of milliseconds.
    """

    def __init__(self, *, private_hosts: bool, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._private_hosts = private_hosts
        self._timeout = timeout_seconds
        self._context = ssl.create_default_context()

    async def post(self, webhook: Webhook, delivery: Delivery) -> Answer:
        """One attempt. What goes wrong is in the answer; nothing is raised."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(webhook, delivery)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(error=f"no answer within {self._timeout:g} s")
        except AddressRefused as refused:
            return Answer(error=str(refused))
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            return Answer(error=_told(error))

    async def _post(self, webhook: Webhook, delivery: Delivery) -> Answer:
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout
        target = target_of(webhook.url)
        # The name is resolved once, here, and the very address that was checked is connected to: a name that changes
        # its mind in between leads nowhere else.
        found = await checked_addresses(target, private_hosts=self._private_hosts)
        *others, last = found[:ADDRESSES_TRIED]
        async with httpx.AsyncClient(verify=self._context, follow_redirects=False, trust_env=False) as client:
            for number, address in enumerate(others):
                # its share of what is left: one that swallows everything leaves time for those after it
                share = max(0.0, deadline - now()) / (len(others) + 1 - number)
                with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                    return await self._send(client, target, address, webhook, delivery, connect_seconds=share)
            return await self._send(client, target, last, webhook, delivery, connect_seconds=self._timeout)

    async def _send(
        self,
        client: httpx.AsyncClient,
        target: Target,
        address: str,
        webhook: Webhook,
        delivery: Delivery,
        *,
        connect_seconds: float,
    ) -> Answer:
        there = pinned(target.url, address)
        request = client.build_request(
            "POST",
            there["url"],
            content=delivery.body.encode(),
            headers={**headers(webhook, delivery, now=time.time()), **there["headers"]},
            timeout=httpx.Timeout(self._timeout, connect=connect_seconds),
            extensions=there["extensions"],
        )
        response = await client.send(request, stream=True)
        try:
            said = bytearray()
            async for part in response.aiter_raw(EXCERPT_BYTES):
                said += part
                if len(said) >= EXCERPT_BYTES:
                    break
        finally:
            await response.aclose()
        error = "redirects are not followed" if response.is_redirect else None
        retry_after = retry_after_seconds(response.headers.get("retry-after"), now=time.time())
        excerpt = bytes(said[:EXCERPT_BYTES]).decode(errors="replace")
        return Answer(code=response.status_code, error=error, retry_after=retry_after, excerpt=excerpt)


def _told(error: Exception) -> str:
    """What went wrong, without the receiver's own words.

    They may repeat the path of the URL, which for many receivers is the credential. The library quotes them behind a
    colon.
    """
    said = str(error)
    if isinstance(error, httpx.RemoteProtocolError):
        said = said.partition(":")[0]
    return f"{type(error).__name__}: {said}"


@lru_cache(maxsize=1)
def _resolvers() -> ThreadPoolExecutor:
    """Apart from the event loop's own threads, by which a reconciler looks after its workers."""
    return ThreadPoolExecutor(max_workers=RESOLVERS, thread_name_prefix="resolve")

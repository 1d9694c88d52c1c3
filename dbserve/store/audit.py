"""The audit log: one capped stream a project, one of the deployment, and one of strangers, who wash away nothing but
each other. The process's own log has it all."""

from collections.abc import Mapping, Sequence
from typing import cast

from redis.asyncio import Redis

from dbserve.contracts.audit import AuditEntry
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.connection import reaching_redis

KEPT = 20_000  # entries of one stream, about 5 MB


class AuditLog:
    """Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def note(self, project: str | None, entry: AuditEntry) -> None:
        """Adds an entry (None: of a stranger); where a lost connection made the driver repeat itself, twice."""
        async with reaching_redis("write"):
            await self._redis.xadd(_stream(project), {"entry": brief(entry)}, maxlen=KEPT, approximate=True)

    async def page(
        self, project: str | None, *, limit: int, after: str | None = None
    ) -> tuple[list[tuple[str, AuditEntry]], str | None]:
        """A project's entries (None: strangers') with their ids, newest first, and the cursor of the next page.

        No cursor: this was the last page.

        Raises ConfigInvalid for a foreign cursor.
        """
        if after is not None and keys.stream_order(after) == (0, 0):
            return [], None  # nothing can be older, and Redis knows no range that ends before it
        start = "+" if after is None else f"({keys.stream_id(after)}"
        async with reaching_redis():
            found = cast(
                Sequence[tuple[str, Mapping[str, str]]],
                await self._redis.xrevrange(_stream(project), max=start, count=limit + 1),
            )
        entries = [(entry_id, AuditEntry.model_validate_json(fields["entry"])) for entry_id, fields in found[:limit]]
        return entries, entries[-1][0] if len(found) > limit else None


def _stream(project: str | None) -> str:
    return keys.AUDIT_STRANGERS if project is None else keys.audit(project)

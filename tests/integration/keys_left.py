"""What may lie in Redis: a test that leaves anything else behind has found a leak."""

import re
from pathlib import Path

import redis as redis_sync

from dbserve.store import keys

FIXED = {
    keys.SCHEMA_KEY,
    keys.DEPLOYMENT,
    keys.JOBS,
    keys.ACTIVE,
    keys.FINISHED,
    keys.DELETED,
    keys.MODELS,
    keys.LEASE,
    keys.UPGRADE,
    keys.WEBHOOKS,
    keys.WEBHOOK_IDS,
    keys.OUTBOX,
    keys.CLUSTER,
    keys.COUNTERS,
    keys.API_KEYS,
    keys.API_KEYS_USED,
    keys.API_KEYS_MADE,
    keys.AUDIT_STRANGERS,
}
OF_A_PROJECT = re.compile(r"dbserve:(project:[a-z0-9-]+:(jobs|models)|audit:([a-z0-9-]+|\*))")
OF_A_JOB = re.compile(r"dbserve:job:(\w+)(:tasks|:progress|:events|:logs|:course:[\w-]+)?")
OF_A_WEBHOOK = re.compile(r"dbserve:webhook:(\w+):(pending|due|attempts)")
EXPIRING = re.compile(r"dbserve:(idempotency|lease|limit)[:/].*")


def leaks(socket: Path) -> list[str]:
    """What is wrong with the keys of this Redis, in words."""
    client = redis_sync.Redis(unix_socket_path=str(socket), decode_responses=True)
    found: list[str] = []
    for key in client.scan_iter():
        expires = client.ttl(key) != -1
        if expires != bool(EXPIRING.fullmatch(key)):
            found.append(f"{key} {'expires' if expires else 'never expires'}")
        job = OF_A_JOB.fullmatch(key)
        if job is not None and client.zscore(keys.JOBS, job[1]) is None:
            found.append(f"{key} belongs to no job")
        webhook = OF_A_WEBHOOK.fullmatch(key)
        if webhook is not None and not client.hexists(keys.WEBHOOKS, webhook[1]):
            found.append(f"{key} belongs to no webhook")
        of_another = EXPIRING.fullmatch(key) or re.fullmatch(r"dbserve:(model|owner):[\w-]+", key)
        known = key in FIXED or OF_A_PROJECT.fullmatch(key) or job or webhook or of_another
        if not known:
            found.append(f"{key} is no key of ours")
    client.close()
    return found

"""Redis' ACL: a user for each kind of process, with the commands it sends and the keys it touches, and no more.

A user's keys are all those of its processes: Redis 6.2, which these rules are to suit, knows no keys that may only be
read. So a worker can write to any job, but reads neither the secrets of webhooks nor API keys.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dbserve.errors import ConfigInvalid
from dbserve.store import keys

VARIABLE = "DBSERVE_ACL_{}_PASSWORD"  # of a user; with _SHA256 behind it, of the password's hash
SHORTEST_PASSWORD = 16  # characters
_SHA256 = re.compile("[0-9a-f]{64}")

_TRANSACTIONS = "multi exec discard watch unwatch eval evalsha script|load time"
_HASHES = "hget hmget hgetall hvals hset hdel hincrby hincrbyfloat"
_ATTEMPTS = f"ping select {_TRANSACTIONS} {_HASHES} exists get set del sadd srem zadd xadd xrevrange llen lrange rpush"
_OF_JOBS = (keys.job("*"), keys.model("*"), keys.MODELS, keys.models_of("*"), keys.COUNTERS, keys.ACTIVE, keys.FINISHED)
_OF_WEBHOOKS = (keys.WEBHOOKS, keys.webhook_pending("*"), keys.webhook_due("*"), keys.webhook_attempts("*"))
_OF_ALL = (*_OF_JOBS, keys.WEBHOOK_IDS, keys.OUTBOX)
_OF_SERVICE = (
    *(*_OF_ALL, *_OF_WEBHOOKS),
    *(
        keys.SCHEMA_KEY,
        keys.CLUSTER,
        keys.DEPLOYMENT,
        keys.JOBS,
        keys.jobs_of("*"),
        keys.DELETED,
        keys.owner("*"),
        keys.EVERY_REQUEST,
    ),
)


@dataclass(frozen=True)
class User:
    """What one kind of process may do."""

    name: str
    commands: str  # by name or category, a blank between them; -: not that one
    keys: Sequence[str] = ()  # patterns

    def line(self, sha256: str) -> str:
        """Of an ACL file. `sha256`: of the password, in hex."""
        may = " ".join(command if command.startswith("-") else f"+{command}" for command in self.commands.split())
        patterns = " ".join(f"~{pattern}" for pattern in self.keys)
        return " ".join(filter(None, ["user", self.name, "on", f"#{sha256}", patterns, "resetchannels -@all", may]))


USERS = (
    User(
        "api",
        f"{_ATTEMPTS} info hkeys hlen expire incr lpush ltrim mget renamenx sismember smembers xdel xlen xrange xread "
        "zrangebyscore zrem zrevrangebylex",
        (*_OF_SERVICE, f"{keys.API_KEYS}*", f"{keys.LIMITS}:*", keys.audit("*")),
    ),
    User(
        "reconciler",
        f"{_ATTEMPTS} info hexists hkeys hlen lpush ltrim pexpire renamenx scan sismember smembers xdel xrange zrange "
        "zrangebyscore zrem",
        (*_OF_SERVICE, keys.LEASE, keys.UPGRADE),
    ),
    User("worker", _ATTEMPTS, _OF_ALL),
    User("exporter", "ping info dbsize latency|latest slowlog|len"),  # of Redis' own figures; sees no key
    # Ray's head, where it keeps its books in the same Redis: of its keys, everything; of the server, nothing.
    User("ray", "@all -@admin -@dangerous -@scripting info", ("RAY*", "DUMMY")),
)
OPTIONAL = ("exporter", "ray")
# Who says no name and no password gets nothing.
DEFAULT = "user default off resetkeys resetchannels -@all"


def acl_file(hashes: Mapping[str, str]) -> str:
    """An ACL file with the users that have a password. `hashes`: sha256 in hex by user, or what stands for it."""
    return "\n".join([DEFAULT, *(user.line(hashes[user.name]) for user in USERS if user.name in hashes)]) + "\n"


def password_hashes(environment: Mapping[str, str]) -> dict[str, str]:
    """The hash of each user's password, from variables such as DBSERVE_ACL_WORKER_PASSWORD, or the same with _SHA256.

    Of `exporter` and `ray` none is needed: not everybody has them. Raises ConfigInvalid that names the
    variable, never its value.
    """
    found: dict[str, str] = {}
    for user in USERS:
        name = VARIABLE.format(user.name.upper())
        password, sha256 = environment.get(name, ""), environment.get(f"{name}_SHA256", "").lower()
        if password and len(password) < SHORTEST_PASSWORD:
            raise ConfigInvalid(f"{name} must have at least {SHORTEST_PASSWORD} characters")
        if sha256 and not _SHA256.fullmatch(sha256):
            raise ConfigInvalid(f"{name}_SHA256 is no SHA-256 in hex")
        if password or sha256:
            found[user.name] = sha256 or hashlib.sha256(password.encode()).hexdigest()
        elif user.name not in OPTIONAL:
            raise ConfigInvalid(f"{name} is not set, nor is {name}_SHA256")
    if len(set(found.values())) < len(found):
        raise ConfigInvalid("two users have the same password")
    return found

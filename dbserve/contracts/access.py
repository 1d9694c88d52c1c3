"""As whom, and how, a process reaches Redis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

NAMES = (  # of the settings, after "redis_"
    "url",
    "username",
    "password",
    "ca_file",
    "cert_file",
    "key_file",
)


@dataclass(frozen=True)
class RedisAccess:
    """A URL (redis://, rediss:// or unix://), and what goes beside it rather than into it."""

    url: str = field(repr=False)  # may carry a password: it is told to workers then, through Ray
    username: str | None = None  # of Redis' ACL
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None  # PEM: who signs the server's certificate, where the system does not know it
    cert_file: str | None = None  # PEM: ours, where the server asks for one
    key_file: str | None = None

    def told(self) -> str:
        """The URL that workers are told: without credentials, where those are set beside it.

        Whatever is told to workers lies in Ray's own books, for all who may use the cluster to read.
        """
        if self.username is None and self.password is None:
            return self.url
        scheme, _, rest = self.url.partition("://")
        place, _, query = rest.partition("?")
        host, slash, path = place.partition("/")
        kept = [option for option in query.split("&") if option.partition("=")[0] not in ("", "username", "password")]
        bare = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
        return f"{bare}?{'&'.join(kept)}" if kept else bare

    @classmethod
    def here(cls, told: str, environment: Mapping[str, str]) -> Self:
        """The access of a worker: its own environment knows better than what it is told."""
        given = {name: value for name in NAMES if (value := environment.get(_variable(name)))}
        return cls(**{"url": told, **given})

    @staticmethod
    def variables() -> tuple[str, ...]:
        """What here() looks at."""
        return tuple(map(_variable, NAMES))


def _variable(name: str) -> str:
    return f"DBSERVE_REDIS_{name.upper()}"

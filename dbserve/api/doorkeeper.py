"""Who a bearer token stands for. Keys of the store are remembered for CACHE_SECONDS, so a revoked one ends so soon."""

import contextlib
import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from dbserve.api import credentials
from dbserve.api.outage import Outage
from dbserve.contracts.key import ALL_PROJECTS, DEFAULT_PROJECT, ApiKey, Scope
from dbserve.errors import KeyNotFound, StoreUnavailable
from dbserve.settings import Settings
from dbserve.store import JobStore

CACHE_SECONDS = 5.0  # how long another process's revocation, or its first key, may go unnoticed here
REMEMBERED = 1000  # keys
USED_SECONDS = 60.0  # between two notes of when a key was used
SCRAPER = "scrape_key"
EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Identity:
    """Who asks. `home` is the project that the key belongs to; ALL_PROJECTS: to the deployment."""

    key_id: str | None  # None: no key is asked for
    home: str
    scopes: frozenset[Scope]
    sha256: str = field(default="", repr=False)  # of the secret that was sent, of a key in the store
    bootstrap: str = ""  # a digest of it, of a key of DBSERVE_API_KEY: for us alone, who sees it could guess at the key
    expires_at: float | None = None  # unix seconds

    @property
    def scrapes(self) -> bool:
        """Whether it is Prometheus, by DBSERVE_SCRAPE_KEY."""
        return self.key_id == SCRAPER

    def owner_in(self, project: str) -> str:
        """Who takes turns and has a quota: the project, whichever of its keys submits. In the default one, bootstrap
        keys are owners by themselves, as they were before there were projects."""
        if project == DEFAULT_PROJECT and (self.bootstrap or self.key_id is None):
            return self.bootstrap
        return project


NOBODY = Identity(None, ALL_PROJECTS, EVERY_SCOPE)  # where no key is asked for: whoever reaches the service may do all


class Doorkeeper:
    """Of one process. With Redis away a key of the store cannot be checked, and StoreUnavailable is raised."""

    def __init__(self, settings: Settings, store: JobStore, outage: Outage) -> None:
        self._store = store
        self._outage = outage
        self._bootstrap = tuple(key.encode() for key in settings.api_keys)
        self._scraper = settings.scrape_key.get_secret_value().encode() if settings.scrape_key else None
        self._asks = settings.keys_always_asked_for
        self._asked_at: float | None = None  # when the store was last asked whether there are keys, monotonic
        self._keys: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()  # with when they were read, monotonic

    async def identify(self, token: str | None) -> Identity | None:
        """None: a key is asked for, and this is none that opens."""
        if not await self._asks_for_keys():
            return NOBODY
        if token is None:
            return None
        sent = token.encode()
        if True in (opens := [hmac.compare_digest(sent, key) for key in self._bootstrap]):
            owner = hashlib.sha256(sent).hexdigest()[:16]
            return Identity(f"bootstrap-{opens.index(True) + 1}", ALL_PROJECTS, EVERY_SCOPE, bootstrap=owner)
        if self._scraper is not None and hmac.compare_digest(sent, self._scraper):
            return Identity(SCRAPER, ALL_PROJECTS, frozenset())
        if (parsed := credentials.parsed(token)) is None:
            return None
        key_id, secret = parsed
        sha256 = credentials.digest(secret)
        key = await self._key(key_id)
        if key is None or not credentials.opens(key, sha256, time.time()):
            return None
        return Identity(key.id, key.project, frozenset(key.scopes), sha256=sha256, expires_at=key.expires_at)

    async def still_opens(self, identity: Identity) -> bool:
        """Whether one that was let in would be let in now: asked while a stream lasts."""
        try:
            if identity.key_id is None:
                return not await self._asks_for_keys()
            if not identity.sha256:
                return True
            key = await self._key(identity.key_id)
        except StoreUnavailable:
            return False
        return key is not None and credentials.opens(key, identity.sha256, time.time())

    def ask_from_now_on(self) -> None:
        """There is a key now."""
        self._asks = True

    def forget(self, key_id: str) -> None:
        """It was changed here: the next request looks anew."""
        self._keys.pop(key_id, None)

    async def _asks_for_keys(self) -> bool:
        """Once it does it always will. While Redis is away its last answer holds; before the first there is none."""
        now = time.monotonic()
        if self._asks or (self._asked_at is not None and now - self._asked_at < CACHE_SECONDS):
            return self._asks
        try:
            with self._outage.noticing():
                self._outage.refuse()
                self._asks = await self._store.api_keys.ever_made()
        except StoreUnavailable:
            if self._asked_at is None:
                raise
            return self._asks
        self._asked_at = now
        return self._asks

    async def _key(self, key_id: str) -> ApiKey | None:
        now = time.monotonic()
        known = self._keys.get(key_id)
        if known is not None and now - known[0] < CACHE_SECONDS:
            return known[1]
        self._outage.refuse()
        try:
            with self._outage.noticing():
                key, used_at = await self._store.api_keys.find(key_id)
        except KeyNotFound:  # not remembered: there is no end of keys that do not exist
            self._keys.pop(key_id, None)
            return None
        self._keys[key_id] = now, key
        self._keys.move_to_end(key_id)
        while len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        await self._note_use(key, used_at)
        return key

    async def _note_use(self, key: ApiKey, used_at: float | None) -> None:
        """At most once a minute. A Redis that takes no writes may still be read."""
        now = time.time()
        if used_at is None or now - used_at >= USED_SECONDS:
            with contextlib.suppress(StoreUnavailable):
                await self._store.api_keys.used(key.id, at=now)

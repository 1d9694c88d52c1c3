"""What routes share: settings, the store, this process's counters."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from dbserve.api.doorkeeper import Doorkeeper
from dbserve.api.fanout import Fanout
from dbserve.api.outage import Outage
from dbserve.api.readiness import ArtefactProbe, Readiness
from dbserve.api.streams import OpenStreams
from dbserve.api.submission import Plans
from dbserve.api.watching import LiveViews
from dbserve.metrics import HttpMetrics
from dbserve.settings import Settings
from dbserve.store import JobStore
from dbserve.tracing import UNTRACED, Tracer
from dbserve.webhooks.posting import Poster


@dataclass(frozen=True)
class Services:
    settings: Settings
    opened: JobStore  # for what has to wait for Redis however long it takes
    tracer: Tracer = UNTRACED
    http: HttpMetrics = field(default_factory=HttpMetrics)

    @property
    def store(self) -> JobStore:
        """Raises StoreUnavailable while Redis is known to hang."""
        self.outage.refuse()
        return self.opened

    @cached_property
    def plans(self) -> Plans:
        return Plans(self.settings)

    @cached_property
    def artefacts(self) -> ArtefactProbe:
        return ArtefactProbe(self.settings.artifacts)

    @cached_property
    def readiness(self) -> Readiness:
        return Readiness()

    @cached_property
    def poster(self) -> Poster:
        """Blocks when it is first asked for, as making one does."""
        return Poster(private_hosts=self.settings.webhook_private_hosts)

    @cached_property
    def outage(self) -> Outage:
        return Outage(self.opened)

    @cached_property
    def door(self) -> Doorkeeper:
        return Doorkeeper(self.settings, self.opened, self.outage)

    @cached_property
    def streams(self) -> OpenStreams:
        return OpenStreams()

    @cached_property
    def fanout(self) -> Fanout:
        """Of this process, whose event loop it needs: made with the first stream."""
        return Fanout(self.opened)

    @cached_property
    def live(self) -> LiveViews:
        """The same, of jobs that are watched as they stand."""
        return LiveViews(self.opened)


# async although nothing is awaited: plain functions would be handed to a thread, at more cost than they have themselves
async def _services(request: Request) -> Services:
    return request.app.state.services


async def _store(services: Annotated[Services, Depends(_services)]) -> JobStore:
    return services.store


With = Annotated[Services, Depends(_services)]
Store = Annotated[JobStore, Depends(_store)]

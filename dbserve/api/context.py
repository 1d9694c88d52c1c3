"""What routes share: settings, the store, this process's counters; and the shape of an id."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Path, Request

from dbserve.api.fanout import Fanout
from dbserve.api.outage import Outage
from dbserve.api.readiness import ArtefactProbe
from dbserve.api.submission import Plans
from dbserve.api.watching import LiveViews
from dbserve.errors import JobNotFound, ModelNotFound
from dbserve.metrics import HttpMetrics
from dbserve.settings import Settings
from dbserve.store import JobStore
from dbserve.tracing import UNTRACED, Tracer
from dbserve.webhooks.posting import Poster

_ID = re.compile(r"[A-Za-z0-9]{1,64}")  # ids become parts of storage keys and of paths: nothing else may


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
    def poster(self) -> Poster:
        """Blocks when it is first asked for, as making one does."""
        return Poster(private_hosts=self.settings.webhook_private_hosts)

    @cached_property
    def outage(self) -> Outage:
        return Outage(self.opened)

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


async def _job_id(job_id: Annotated[str, Path()]) -> str:
    if not _ID.fullmatch(job_id):
        raise JobNotFound(job_id)
    return job_id


async def _model_id(model_id: Annotated[str, Path()]) -> str:
    if not _ID.fullmatch(model_id):
        raise ModelNotFound(model_id)
    return model_id


With = Annotated[Services, Depends(_services)]
Store = Annotated[JobStore, Depends(_store)]
JobId = Annotated[str, Depends(_job_id)]
ModelId = Annotated[str, Depends(_model_id)]

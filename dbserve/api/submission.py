"""The road of a job from the request's body to its plan."""

from collections import OrderedDict
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from dbserve.admission import BUILTIN, Allowed
from dbserve.api.bodies import media_type
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.conversion import with_source
from dbserve.conversion.sources import POINTER as SOURCE
from dbserve.datasets import inspect
from dbserve.datasets.inspection import locate
from dbserve.datasets.reach import admit
from dbserve.datasets.shards import shard_version
from dbserve.jobfile import Format, parse_job
from dbserve.planner import load_card, plan_job
from dbserve.settings import Settings

PARSED_AT_ONCE_BYTES = 16 * 1024  # JSON so short is parsed sooner than it is handed to a thread
REMEMBERED = 64

_FORMATS: dict[str, Format] = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}

EXAMPLE: dict[str, Any] = {  # accepted as it is, wherever the API runs
    "name": "digits",
    "architecture": {"kind": "vit", "options": {"depth": 2, "width": 32, "heads": 2, "patch": 2}},
    "data": {"uri": "builtin:digits"},
    "blocks": {"count": 2},
    "training": {"steps": 60, "batch_size": 64},
}

# The body is read and parsed here, not by FastAPI, whose parser lets NaN and duplicate keys through and echoes input.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A job, at most 1 MiB. Unknown keys are refused.",
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/JobSpec-Input"}, "example": EXAMPLE}
            for kind in ("application/json", "application/yaml")
        },
    }
}


async def _job_spec(request: Request) -> JobSpec:
    form = _FORMATS.get(media_type(request))
    if form is None:
        raise HTTPException(415, "send the job as application/json or application/yaml, and say which in Content-Type")
    body = await request.body()
    if form == "json" and len(body) <= PARSED_AT_ONCE_BYTES:
        return parse_job(body, form)
    return await run_in_threadpool(parse_job, body, form)


Submitted = Annotated[JobSpec, Depends(_job_spec)]


class Plans:
    """Makes plans, and remembers the last ones: of sweeps and repeats many are alike but for name and labels.

    A plan is made again when any of its shards has changed, and of a job with files beside them (a tokenizer, an
    existing network) always.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: OrderedDict[str, tuple[_Versions, JobPlan]] = OrderedDict()

    async def make(self, spec: JobSpec, *, by_key: bool) -> JobPlan:
        """The plan of a job: card, then shards (footers and labels), then arithmetic. `by_key`: who asks has one.

        Raises ConfigInvalid, DataInvalid.
        """
        allowed = self._settings.data_rules_for(by_key=by_key)
        if spec.architecture.source is not None or spec.data.tokenizer is not None:
            return await run_in_threadpool(self._made, spec, allowed)
        asked = spec.model_copy(update={"name": "", "labels": {}}).model_dump_json()
        known = self._known.get(asked)
        uris = filter(None, (spec.data.uri, spec.data.test_uri))
        if known is not None and all(uri.startswith(BUILTIN) for uri in uris):
            # files of our own cache, made already: sooner looked at than a thread is had
            versions = self._versions(spec, allowed)
        else:  # before the shards are read: no change goes unseen
            versions = await run_in_threadpool(self._versions, spec, allowed)
        if known is not None and known[0] == versions:
            self._known.move_to_end(asked)
            return known[1]
        plan = await run_in_threadpool(self._made, spec, allowed)
        self._known[asked] = versions, plan
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return plan

    def _made(self, spec: JobSpec, allowed: Allowed) -> JobPlan:
        card = load_card(spec.architecture.kind)
        facts = inspect(spec.data, modality=card.modality, cache_dir=self._settings.cache_dir, allowed=allowed)
        if spec.architecture.source is not None:
            admit(spec.architecture.source, pointer=SOURCE, allowed=allowed)
        return plan_job(with_source(spec, facts), card, facts)

    def _versions(self, spec: JobSpec, allowed: Allowed) -> "_Versions":
        """Which shards there are, and what would differ if their bytes did."""
        data = spec.data
        find = partial(locate, cache_dir=self._settings.cache_dir, allowed=allowed)
        train = find(data.uri, role="train", pointer="/data/uri")
        versions = [shard_version(uri, pointer="/data/uri") for uri in train]
        if data.test_uri is not None:
            test = find(data.test_uri, role="test", pointer="/data/test_uri")
            versions += [shard_version(uri, pointer="/data/test_uri") for uri in test]
        return versions


_Versions = list[dict[str, str]]

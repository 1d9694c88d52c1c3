"""Ids in paths: each is of the caller's project, or is not known. Nobody learns of another project's things.

Whatever takes an id takes it through here: another's is refused with the very answer for one that does not exist.
"""

import re
from typing import Annotated

from fastapi import Depends, Path, Request

from dbserve.api.auth import Asking, noted
from dbserve.api.context import Store
from dbserve.contracts.key import ALL_PROJECTS
from dbserve.contracts.webhook import Webhook
from dbserve.errors import JobNotFound, KeyNotFound, ModelNotFound, WebhookNotFound
from dbserve.store.api_keys import Found

_ID = re.compile(r"[A-Za-z0-9]{1,64}")  # ids become parts of storage keys and of paths: nothing else may


async def _job_id(job_id: Annotated[str, Path()], caller: Asking, store: Store) -> str:
    if not _ID.fullmatch(job_id) or await store.ownership.of_job(job_id) != caller.project:
        raise JobNotFound(job_id)
    return job_id


async def _model_id(model_id: Annotated[str, Path()], caller: Asking, store: Store) -> str:
    if not _ID.fullmatch(model_id) or await store.ownership.of_model(model_id) != caller.project:
        raise ModelNotFound(model_id)
    return model_id


async def _webhook(webhook_id: Annotated[str, Path()], caller: Asking, store: Store) -> Webhook:
    if not _ID.fullmatch(webhook_id):
        raise WebhookNotFound(webhook_id)
    webhook = await store.webhooks.get(webhook_id)
    if webhook.project != caller.project:
        raise WebhookNotFound(webhook_id)
    return webhook


async def _key(request: Request, key_id: Annotated[str, Path()], caller: Asking, store: Store) -> Found:
    """Of the caller's project; of any, for a caller of the deployment."""
    if not _ID.fullmatch(key_id):
        raise KeyNotFound(key_id)
    found = await store.api_keys.find(key_id)
    if caller.keys_of not in (ALL_PROJECTS, found.key.project):
        raise KeyNotFound(key_id)
    noted(request).project = found.key.project  # in whose audit log it belongs
    return found


JobId = Annotated[str, Depends(_job_id)]
ModelId = Annotated[str, Depends(_model_id)]
OwnWebhook = Annotated[Webhook, Depends(_webhook)]
OwnKey = Annotated[Found, Depends(_key)]

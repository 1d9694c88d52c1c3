"""Webhooks: who is told of what happens, and what became of telling."""

import asyncio
import secrets
import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response

from dbserve.api.auth import Asking, Caller
from dbserve.api.bodies import documented, read_body
from dbserve.api.context import Store, With
from dbserve.api.links import links
from dbserve.api.problems import problems
from dbserve.api.tenancy import OwnWebhook
from dbserve.api.views import utc, when
from dbserve.contracts.key import Scope
from dbserve.contracts.views import Page
from dbserve.contracts.webhook import (
    Attempted,
    AttemptView,
    NewWebhook,
    PingView,
    Webhook,
    WebhookCreated,
    WebhookDetail,
    WebhookView,
)
from dbserve.errors import WebhookInvalid
from dbserve.webhooks.addresses import target_of
from dbserve.webhooks.posting import checked_addresses
from dbserve.webhooks.signing import new_secret, ping_of

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


async def _asked(request: Request) -> NewWebhook:
    return await read_body(request, NewWebhook, "webhook", WebhookInvalid)


Asked = Annotated[NewWebhook, Depends(_asked)]


@router.post(
    "",
    status_code=201,
    openapi_extra=documented(NewWebhook),
    responses={
        201: links("webhook_id", "show_webhook", "ping_webhook", "delete_webhook"),
        **problems(408, 409, 413, 415),
    },
)
async def create_webhook(asked: Asked, services: With, caller: Asking, response: Response) -> WebhookCreated:
    """A new receiver. The secret that signs its messages is answered here, and never again."""
    target = target_of(asked.url)
    await checked_addresses(target, private_hosts=services.settings.webhook_private_hosts)
    secret = new_secret() if asked.secret is None else asked.secret.get_secret_value()
    webhook = Webhook(
        id=f"w{secrets.token_hex(8)}",
        project=caller.project,
        url=str(target.url),
        events=asked.events,
        description=asked.description,
        secret=secret,
        created_at=await services.store.clock(),
    )
    await services.store.webhooks.add(webhook)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    return WebhookCreated(**_view(webhook, caller).model_dump(), secret=secret)


@router.get("", responses=problems())
async def list_webhooks(store: Store, caller: Asking) -> Page[WebhookView]:
    """Every webhook of the project, oldest first."""
    return Page(data=tuple(_view(one, caller) for one in await store.webhooks.all() if one.project == caller.project))


@router.get("/{webhook_id}", responses=problems(404))
async def show_webhook(webhook: OwnWebhook, store: Store, caller: Asking) -> WebhookDetail:
    """A webhook with its last attempts at a delivery: when, what the receiver said, when the next one is."""
    waiting, attempts = await store.webhooks.attempts(webhook.id)
    return WebhookDetail(
        **_view(webhook, caller).model_dump(), waiting=waiting, deliveries=tuple(map(_attempt, attempts))
    )


@router.delete("/{webhook_id}", status_code=204, responses=problems(404))
async def delete_webhook(webhook: OwnWebhook, store: Store) -> None:
    """Nothing more is sent, of what is on its way neither."""
    await store.webhooks.remove(webhook.id)


@router.post("/{webhook_id}/test", responses=problems(404))
async def ping_webhook(webhook: OwnWebhook, services: With) -> PingView:
    """Sends a `ping`, signed as every message, and answers with what the receiver said. It is not tried again."""
    ping = ping_of(webhook, now=time.time())
    poster = await asyncio.to_thread(lambda: services.poster)  # the first one blocks
    answer = await poster.post(webhook, ping)
    return PingView(
        delivered=answer.accepted,
        message_id=ping.message_id,
        code=answer.code,
        error=answer.error,
        answer=answer.excerpt,
    )


def _view(webhook: Webhook, caller: Caller) -> WebhookView:
    """To who may only look, without the path of its URL: of many receivers it is all that one needs to write there."""
    shown = webhook.model_dump(exclude={"secret", "project", "created_at"})
    if Scope.SUBMIT not in caller.scopes:
        shown["url"] = urlsplit(webhook.url)._replace(path="/...", query="", fragment="").geturl()
    return WebhookView(**shown, created_at=utc(webhook.created_at))


def _attempt(attempted: Attempted) -> AttemptView:
    shown = attempted.model_dump(exclude={"at", "next_try"})
    return AttemptView(**shown, at=utc(attempted.at), next_try=when(attempted.next_try))

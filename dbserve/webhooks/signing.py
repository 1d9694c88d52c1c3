"""Messages and their signatures, after the Standard Webhooks specification (standardwebhooks.com). Pure."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from dbserve.contracts.webhook import PING, SECRET_PREFIX, Delivery, Occurrence, Webhook, decoded_secret

SECRET_BYTES = 32


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over "id.timestamp.body". `timestamp` in unix seconds."""
    signed = f"{message_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(decoded_secret(secret), signed, hashlib.sha256)).decode()


def headers(webhook: Webhook, delivery: Delivery, *, now: float) -> Mapping[str, str]:
    """What one attempt carries: the id that all attempts share, the time of this one, the signature of both and the
    body."""
    timestamp = int(now)
    return {
        "content-type": "application/json",
        "user-agent": "dbserve",
        "webhook-id": delivery.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(webhook.secret, delivery.message_id, timestamp, delivery.body),
    }


def delivery_of(occurrence: Occurrence, webhook_id: str, message_id: str) -> Delivery:
    """The message that tells one receiver of an occurrence."""
    data = occurrence.model_dump(mode="json", exclude={"topic", "at"})
    body = _body(occurrence.topic.value, occurrence.at, data)
    return Delivery(
        webhook_id=webhook_id, message_id=message_id, event=occurrence.topic.value, body=body, at=occurrence.at
    )


def ping_of(webhook: Webhook, *, now: float) -> Delivery:
    """A test message."""
    body = _body(PING, now, {"webhook_id": webhook.id})
    message_id = f"msg_ping_{secrets.token_hex(8)}"
    return Delivery(webhook_id=webhook.id, message_id=message_id, event=PING, body=body, at=now)


def _body(event: str, at: float, data: Mapping[str, object]) -> str:
    moment = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"type": event, "timestamp": moment, "data": data}, separators=(",", ":"))

"""The API keys, where any are set, and whose job a request's is."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from dbserve.api.context import With

_bearer = HTTPBearer(
    auto_error=False, description="a key of the server's DBSERVE_API_KEY; not asked for when it has none"
)


async def require_key(services: With, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The owner that the request's key stands for: a digest of it; "" where no key is asked for. 401 for a wrong one.

    Every key is compared, each in constant time.
    """
    keys = services.settings.api_keys
    if not keys:
        return ""
    sent = given.credentials.encode() if given is not None else b""
    if not sum(hmac.compare_digest(sent, key.encode()) for key in keys):
        raise HTTPException(
            401, "send the API key as Authorization: Bearer ...", headers={"WWW-Authenticate": "Bearer"}
        )
    return hashlib.sha256(sent).hexdigest()[:16]


Owner = Annotated[str, Depends(require_key)]

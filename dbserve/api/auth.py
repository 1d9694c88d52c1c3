"""The API key, where one is set."""

import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from dbserve.api.context import With

_bearer = HTTPBearer(auto_error=False, description="DBSERVE_API_KEY of the server; not asked for when it has none")


def require_key(services: With, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    """401 unless the request carries the key. Compared in constant time."""
    key = services.settings.api_key
    if key is None:
        return
    if given is None or not hmac.compare_digest(given.credentials.encode(), key.get_secret_value().encode()):
        raise HTTPException(
            401, "send the API key as Authorization: Bearer ...", headers={"WWW-Authenticate": "Bearer"}
        )

"""What an API key looks like, and whether it opens. Pure.

A secret is 256 random bits, so there is nothing to guess: SHA-256 once is as good a lock as a slow hash, which is meant
for passwords that people choose, and would cost every request its time. No two secrets are alike, so no salt either.
"""

import hashlib
import hmac
import re
import secrets

from dbserve.contracts.key import ApiKey

PREFIX = "dbs_"
_SPELLED = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_([0-9a-f]{{64}})")


def new_id() -> str:
    return secrets.token_hex(6)


def new_secret() -> str:
    """256 bits."""
    return secrets.token_hex(32)


def prefix(key_id: str) -> str:
    """How a key begins, as it may be shown to anybody."""
    return f"{PREFIX}{key_id}_"


def parsed(token: str) -> tuple[str, str] | None:
    """The id and the secret in a token; None: it is no key of ours."""
    found = _SPELLED.fullmatch(token)
    return None if found is None else (found[1], found[2])


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def opens(key: ApiKey, sha256: str, now: float) -> bool:
    """Whether the secret of this digest opens at that time (unix seconds). Digests are compared in constant time."""
    good = hmac.compare_digest(sha256, key.sha256)
    if key.replaced is not None:
        good |= hmac.compare_digest(sha256, key.replaced.sha256) and now < key.replaced.until
    return good and key.ended_at(now) is None

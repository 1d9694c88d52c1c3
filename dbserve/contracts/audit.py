"""The audit log: who changed what, or tried to. Never a secret, never a body."""

from pydantic import AwareDatetime, BaseModel, Field


class AuditEntry(BaseModel, frozen=True):
    """A request that changes something, as the store holds it."""

    at: float  # unix seconds
    key_id: str | None = None  # None: no key was asked for, or none was good
    address: str | None = None
    method: str
    route: str  # its template; "unmatched" where the request was refused before it met one
    object: str = ""  # path of what was made or changed, as far as it can be named
    status: int
    request_id: str


class AuditView(BaseModel, frozen=True):
    """A request that changed something, or was refused."""

    id: str
    at: AwareDatetime
    key_id: str | None = Field(description="null: no key was asked for, or none was good")
    address: str | None = Field(description="of the connection's other end")
    method: str
    route: str = Field(description="its template")
    object: str = Field(description="path of what was made or changed")
    status: int = Field(description="2xx: it was done")
    request_id: str

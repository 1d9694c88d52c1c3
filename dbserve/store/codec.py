"""How values lie in Redis: small ones as JSON without defaults, large ones as compressed JSON. Pure."""

import base64
import zlib
from typing import TypeVar

from pydantic import BaseModel

from dbserve.contracts.job import AS_STORED

Model = TypeVar("Model", bound=BaseModel)

_PACKED = "z:"  # JSON never begins so


def brief(model: BaseModel) -> str:
    """Without what has its default value: tasks, progress and records, of which there are many."""
    return model.model_dump_json(exclude_defaults=True)


def packed(model: BaseModel) -> str:
    """Complete, and compressed (a plan of 16 blocks to an eighth): what is large and rarely read."""
    return _PACKED + base64.b64encode(zlib.compress(model.model_dump_json().encode(), 6)).decode()


def unpacked(kind: type[Model], text: str) -> Model:
    """What packed() wrote, or plain JSON, as the first schema had it."""
    packed_or_not = zlib.decompress(base64.b64decode(text[len(_PACKED) :])) if text.startswith(_PACKED) else text
    return kind.model_validate_json(packed_or_not, context=AS_STORED)

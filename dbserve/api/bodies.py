"""A body of JSON becomes a model. As of jobs, it is read and parsed here: FastAPI's parser lets duplicate keys through
and echoes input."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from dbserve.errors import SpecInvalid
from dbserve.jobfile import faults
from dbserve.plaintree import read_json

M = TypeVar("M", bound=BaseModel)


def media_type(request: Request) -> str:
    """Of the body; "" where none is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of such a body. What the model names, an answer's schema must name too."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_body(request: Request, model: type[M], what: str, invalid: type[SpecInvalid]) -> M:
    """Raises 415, SpecInvalid where it is no JSON, `invalid` where it is no `model`."""
    if media_type(request) != "application/json":
        raise HTTPException(415, f"send the {what} as application/json, and say so in Content-Type")
    tree = read_json(await request.body())
    try:
        return model.model_validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as wrong:
        raise invalid(faults(wrong, tree, model)) from None

"""What a client may ask next with an answer in hand, for the OpenAPI description (OpenAPI 3.1, section 4.8.20)."""

from typing import Any


def links(parameter: str, *operations: str) -> dict[str, Any]:
    """Part of a response's description: each of the operations takes the answer's `id` as that parameter."""
    return {
        "links": {
            operation: {"operationId": operation, "parameters": {parameter: "$response.body#/id"}}
            for operation in operations
        }
    }

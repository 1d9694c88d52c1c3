"""What a client may ask next with an answer in hand, for the OpenAPI description (OpenAPI 3.1, section 4.8.20)."""

from typing import Any


def links(parameter: str, *operations: str, at: str = "id", **others: str) -> dict[str, Any]:
    """Part of a response's description: each of the operations takes what the answer has at a place as that parameter.

    `at` is a JSON pointer without its first slash; `others` are the operations' further parameters, as runtime
    expressions.
    """
    parameters = {parameter: f"$response.body#/{at}", **others}
    return {"links": {operation: {"operationId": operation, "parameters": parameters} for operation in operations}}

"""The API's documentation for people, at /docs. Its viewer comes from a CDN: no other page of ours loads anything."""

import base64
import hashlib
import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

VIEWER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
_DIGESTS = {  # of the files of that version, as npm has them: a browser runs nothing else
    "swagger-ui-bundle.js": "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
    "swagger-ui.css": "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
}
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI over /openapi.json."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{request.app.title}: the API",
        swagger_js_url=f"{VIEWER}/swagger-ui-bundle.js",
        swagger_css_url=f"{VIEWER}/swagger-ui.css",
        swagger_favicon_url="/assets/icon.svg",
    )
    text = bytes(page.body).decode()
    for name, digest in _DIGESTS.items():
        text = text.replace(f'{VIEWER}/{name}"', f'{VIEWER}/{name}" integrity="{digest}" crossorigin="anonymous"')
    return HTMLResponse(text, headers={"Content-Security-Policy": policy(text.encode())})


def policy(page: bytes) -> str:
    """Only the viewer and the page's own script may run, and they may talk to this server alone."""
    own = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in _SCRIPT.findall(page)
    )
    return (
        f"default-src 'none'; script-src {own} {VIEWER}/; style-src 'unsafe-inline' {VIEWER}/; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

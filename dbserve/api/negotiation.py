"""Which of the media types on offer the client prefers (RFC 9110, section 12.5.1)."""

from fastapi import Request


def preferred(request: Request, *offered: str) -> str:
    """The offered media type with the highest quality in Accept; the first one on a tie or when nothing matches."""
    ranges = [_range(item) for item in request.headers.get("accept", "*/*").split(",")]
    return max(offered, key=lambda media_type: _quality(media_type, ranges))


def _range(item: str) -> tuple[str, float]:
    media_type, *parameters = (part.strip().lower() for part in item.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_type, float(parameter[2:])
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers the type."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0

"""Pictures as a browser is given them."""

from fastapi import HTTPException
from fastapi.responses import Response

KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}
"""What a browser is told a picture is, by its first bytes; nothing else is sent, so a blob is never a page."""


def as_picture(data: bytes) -> Response:
    """Raises HTTPException 404."""
    kind = next((kind for first, kind in KINDS.items() if data.startswith(first)), None)
    if kind is None:
        raise HTTPException(404, "that is no picture which a browser shows")
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=31536000, immutable"})

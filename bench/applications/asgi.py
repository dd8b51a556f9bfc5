"""What uvicorn serves: the pages of `http_server.py`, as a bare ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

TEXT = b"Hello, world!"
JSON = b'{"message": "Hello, world!"}'
PAGES = {"/": (b"text/plain; charset=utf-8", TEXT), "/json": (b"application/json", JSON)}


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    kind, body = PAGES.get(scope["path"], (b"text/plain", b""))
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    status = 200 if scope["path"] in PAGES else 404
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

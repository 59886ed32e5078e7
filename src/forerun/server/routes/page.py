"""The page at `/`: a playground for people, of files that are read once and served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Nothing from elsewhere, nothing inline, and no text that becomes markup: what a model writes cannot act, even where the page had a mistake.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-cache",  # asked about each time, and not sent again while the ETag is the same
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class PageFile:
    body: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """By name. A request looks names up here and nowhere else, so no path leads out of the folder."""
    files: dict[str, PageFile] = {}
    for entry in resources.files("forerun.server").joinpath("page").iterdir():
        media_type = MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None and entry.is_file():
            body = entry.read_bytes()
            files[entry.name] = PageFile(body, f"{media_type}; charset=utf-8", f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return files


@router.api_route("/", methods=["GET", "HEAD"])
def index(request: Request) -> Response:
    return _serve(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def page_file(request: Request, name: str) -> Response:
    return _serve(request, name)


def _serve(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        return Response("there is no such file\n", 404, HEADERS, "text/plain; charset=utf-8")
    headers = HEADERS | {"ETag": file.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known or "*" in known:
        return Response(None, 304, headers)
    if request.method == "HEAD":
        return Response(None, 200, headers | {"Content-Length": str(len(file.body))}, file.media_type)
    return Response(file.body, 200, headers, file.media_type)

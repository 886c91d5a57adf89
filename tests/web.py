"""A web server on this machine whose faults tests choose."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes]
    #: break the next answers off after so many bytes of their body, one number an answer
    breaks: list[int] = field(default_factory=list)
    #: answer the next requests with these statuses
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"first"'
    kind: str = "application/octet-stream"
    length: bool = True
    #: path and range of each request
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    url: str = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    """Serve ``files`` (path -> content) on 127.0.0.1 within the block."""
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    # This machine is asked directly, whatever proxy the environment names.
    direct = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
    try:
        with patch.dict(os.environ, direct):
            yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    wanted = handler.headers.get("Range")
    site.asked.append((handler.path, wanted))
    handler.close_connection = True
    name = handler.path.lstrip("/")
    status = site.statuses.pop(0) if site.statuses else 200 if name in site.files else 404
    if status != 200:
        handler.send_error(status)
        return
    body = site.files[name]
    start = 0
    match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
    condition = handler.headers.get("If-Range")
    if site.ranges and match and condition in (None, site.etag):
        start, status = int(match[1]), 206
        if start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
    handler.send_response(status)
    handler.send_header("Content-Type", site.kind)
    if status == 206:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    if site.length:
        handler.send_header("Content-Length", str(len(body) - start))
    if site.etag:
        handler.send_header("ETag", site.etag)
    handler.end_headers()
    rest = body[start:]
    if site.breaks:
        rest = rest[: site.breaks.pop(0)]
    handler.wfile.write(rest)
    site.sent += len(rest)

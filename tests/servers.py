"""Servers of the tests on the loopback: files with byte ranges, cuts, sounds, made-up pages."""

import csv
import io
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import soundfile

Page = tuple[int, dict[str, str], bytes]  # status, headers, body


@dataclass
class Site:
    """What a server serves. `cut` says for a path which GET of it breaks off half-way; `deaf` is
    one that passes If-Range by."""

    pages: Callable[[str], Page | None]  # by path and query
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    deaf: bool = False


def folder_pages(root: Path) -> Callable[[str], Page | None]:
    """The files below a folder, in parts if asked for, and an index page for each folder."""

    def pages(path: str) -> Page | None:
        place = root / unquote(path).lstrip("/")
        if place.is_dir() and path.endswith("/"):
            names = [f"{x.name}/" if x.is_dir() else x.name for x in sorted(place.iterdir())]
            links = "".join(f'<a href="{quote(name)}">{name}</a>\n' for name in ["../", *names])
            return 200, {"Content-Type": "text/html"}, links.encode()
        return (200, {"Accept-Ranges": "bytes"}, place.read_bytes()) if place.is_file() else None

    return pages


class Server(ThreadingHTTPServer):
    """Says nothing of a client that hangs up; a test may look at what is said."""

    def handle_error(self, request: Any, address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve `site` until the block ends; its address is in `site.url`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.command, self.path, wanted))
            site.headers.append(dict(self.headers))
            status, headers, body = site.pages(self.path) or (404, {}, b"not here")
            if not site.deaf and self.headers.get("If-Range") not in (None, headers.get("ETag")):
                wanted = None
            if status == 200 and wanted and "bytes" in headers.get("Accept-Ranges", ""):
                first, *last = map(int, re.findall(r"\d+", wanted))
                stop = min(len(body), last[0] + 1) if last else len(body)
                status = 206
                headers = headers | {"Content-Range": f"bytes {first}-{stop - 1}/{len(body)}"}
                body = body[first:stop]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            gets = sum(entry[:2] == ("GET", self.path) for entry in site.asked)
            if self.command == "GET" and gets == site.cut.get(self.path):
                body = body[: len(body) // 2]
                self.close_connection = True
            if self.command == "GET":
                self.wfile.write(body)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def wav(seed: int, n: int = 40000) -> bytes:
    """A file of noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).standard_normal(n)
    soundfile.write(buffer, 0.1 * noise, 8000, format="WAV")
    return buffer.getvalue()


#: Half of b is more than gdown's first chunk of 512 KiB.
SOUNDS = {"/a.wav": wav(0), "/b.wav": wav(1, 700_000), "/c.wav": wav(2)}


def sound(path: str) -> Page | None:
    """A page of SOUNDS."""
    if path not in SOUNDS:
        return None
    headers = {"Content-Type": "audio/x-wav", "Accept-Ranges": "bytes", "ETag": f'"{path[1:]}"'}
    return 200, headers, SOUNDS[path]


def outcomes(out: Path) -> list[dict[str, str]]:
    """What a download says of each link."""
    with open(out / "outcomes.csv", newline="") as text:
        return list(csv.DictReader(text))

"""A file on its way here, over as many connections as it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.remote import Damaged, retried

CHUNK = 1 << 20  # bytes written at once


def fetch(url: str, file: Path, check: Callable[[], None] = lambda: None) -> None:
    """Bring a file to `file`; after a Damaged of `check` it starts over. Raises as `retried`."""
    transfer = Transfer(file)
    retried(url, lambda fs, path: transfer.attempt(fs, path, check))


@dataclass
class Transfer:
    """What of it has come to `file`, and the `mark` of what that is a part of, if it has one.

    Over HTTP a connection that breaks is taken up where it broke, as long as the server gives
    ranges and its ETag (or its date) says that the file is the same. Drivers of stores do that by
    themselves.
    """

    file: Path
    mark: str = ""

    def attempt(self, fs: Any, path: str, check: Callable[[], None]) -> None:
        """One connection."""
        if "http" in fs.protocol:
            from fsspec.asyn import sync

            sync(fs.loop, self.stream, fs, path)
        else:
            fs.get_file(path, str(self.file))
        try:
            check()
        except Damaged:
            self.mark = ""
            raise

    async def stream(self, fs: Any, url: str) -> None:
        """Ask for what is missing; what comes may be all of it."""
        begun = self.file.stat().st_size if self.mark else 0
        headers = dict(fs.kwargs.get("headers", {}))  # a token, say
        headers["Accept-Encoding"] = "identity"  # or a range would be one of other bytes
        if begun:
            headers |= {"Range": f"bytes={begun}-", "If-Range": self.mark}
        session, words = await fs.set_session(), fs.kwargs | {"headers": headers}
        async with session.get(fs.encode_url(url), **words) as answer:
            known = self.mark
            if answer.status in (200, 206):
                self.mark = mark_of(answer.headers)
            elif answer.status == 416:  # it is shorter by now
                self.mark = ""
            answer.raise_for_status()
            if is_part := answer.status == 206:
                where = answer.headers.get("Content-Range", "")
                if self.mark != known or not where.startswith(f"bytes {begun}-"):
                    self.mark = ""
                    raise Damaged("part of another file came")
            with open(self.file, "ab" if is_part else "wb") as out:
                async for chunk in answer.content.iter_chunked(CHUNK):
                    out.write(chunk)


def mark_of(headers: Any) -> str:
    """What tells a file from what it was before, for If-Range: its ETag, or else its date."""
    etag = str(headers.get("ETag", "W/"))
    return str(headers.get("Last-Modified", "")) if etag.startswith("W/") else etag

"""Files behind addresses such as s3://, http:// and hf://, by fsspec; with patience and limits."""

import errno
import itertools
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from time import sleep
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from shards.errors import UserError

logger = logging.getLogger(__name__)

TRIES = 6
PAUSE = 0.5  # seconds before the second try; twice as long before each one after
LONGEST_PAUSE = 20.0  # seconds
STALL = 30.0  # seconds without a byte, after which a connection counts as dead
WEB = ("http", "https")
DRIVERS = {"s3": "s3fs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
EXTRAS = {"s3": "wavefold[s3]", "hf": "wavefold[hf]"}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # this machine's trouble, not the server's

Result = TypeVar("Result")


class FetchError(RuntimeError):
    """Nothing came of an address; the message names it and says why. `is_missing`: no file."""

    def __init__(self, url: str, reason: str, is_missing: bool = False):
        super().__init__(f"{url}: {reason}")
        self.reason, self.is_missing = reason, is_missing


class Damaged(Exception):
    """What came is not what was announced."""


def is_url(text: object) -> bool:
    """Whether a word is an address and not a place on this machine's disks."""
    words = str(text)  # a million paths are asked: seldom by the pattern
    return "://" in words and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", words) is not None


@dataclass(frozen=True)
class Url:
    """A folder or file behind an address, with as much of Path as its readers need."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, path: str) -> "Url":
        path = quote(path) if self.scheme in WEB else path
        return Url(f"{self.text.rstrip('/')}/{path}".rstrip("/"))

    @property
    def scheme(self) -> str:
        """`s3`, `https`, ..."""
        return self.text.partition("://")[0].lower()

    @property
    def parent(self) -> "Url":
        """The folder it is in."""
        return Url(self.text.rstrip("/").rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last of its folders or files."""
        return self.text.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """`.csv`, or nothing."""
        return PurePosixPath(self.name).suffix


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it.

    Raises:
        UserError: its driver is not installed, there is no such kind of address, or it holds a
            password or token.
    """
    import fsspec

    scheme = Url(url).scheme
    if re.match(r"(https?://[^/?#]*|[^/]+://[^/?#]*:[^/?#]*)@", url, re.I):  # a user, a password
        raise UserError(
            f"{url}: an address goes into logs and configs, so none may hold a password or token; "
            "put it into ~/.netrc"
        )
    try:
        return fsspec.url_to_fs(url, **options(scheme))
    except ImportError as error:
        what = EXTRAS.get(scheme) or DRIVERS.get(scheme)
        way_out = f"{DRIVERS[scheme]} is missing; pip install '{what}'" if what else str(error)
        raise UserError(f"{url}: {way_out}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; s3://, hf://, http:// and https:// are known") from None


def options(scheme: str) -> dict[str, Any]:
    """What a driver needs to be told so that a connection that stalls is given up."""
    if scheme in WEB:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # ~/.netrc, proxies
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": STALL, "read_timeout": STALL}}
    if scheme in ("file", "local"):
        return {"auto_mkdir": True}
    return {}  # huggingface_hub has limits of its own


def retried(url: str, action: Callable[[Any, str], Result]) -> Result:
    """What `action(file system, path)` returns, after failures again, with growing pauses.

    Raises:
        FetchError: in vain, or at once where another try cannot help: missing, or no access.
        UserError: see `filesystem`.
        OSError: this machine's disk is full or cannot be written.
    """
    for attempt in itertools.count(1):
        try:
            return action(*filesystem(url))
        except (UserError, FetchError):
            raise
        except Exception as error:
            if getattr(error, "errno", None) in DISK:
                raise
            reason, status = plain(error), status_of(error)
            if status in (401, 403, 404):
                raise FetchError(url, reason, is_missing=status == 404) from None
            if attempt == TRIES:
                raise FetchError(url, f"{reason} (tried {TRIES} times)") from None
        pause = min(LONGEST_PAUSE, PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        logger.warning("%s: %s; trying again in %.1f s", url, reason, pause)
        sleep(pause)
    raise AssertionError


def status_of(error: Exception) -> int | None:
    """The status that HTTP has for an error of any driver, if it has one."""
    if isinstance(error, FileNotFoundError):
        return 404
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return 403
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return 404 if status == 410 else status


def plain(error: Exception) -> str:
    """An error in a line."""
    status, text = status_of(error), " ".join(str(error).split())[:200]
    if status == 404:
        return "not there"
    if status in (401, 403):
        return "no access; log in, or set the keys of the store (docs/shards.md, Remote)"
    if isinstance(error, TimeoutError):
        return f"no byte for {STALL:g} s"
    known = {"ClientPayloadError": "the connection broke off", "TooManyRedirects": "redirects only"}
    name = type(error).__name__
    return f"answered {status}" if status else known.get(name) or text or name


def read_bytes(url: str) -> bytes:
    """The content of a small file."""
    return retried(url, lambda fs, path: bytes(fs.cat_file(path)))


def list_files(root: Url) -> list[str]:
    """Every file below an address, as paths with "/"; where it can be listed.

    Raises:
        UserError: no such place, no access to it, or a server that lists nothing.
    """
    try:
        found = retried(str(root), below_page if root.scheme in WEB else below)
    except FetchError as error:
        raise UserError(f"{error}; give an address that can be listed, or a table") from None
    return found


def below(fs: Any, top: str) -> list[str]:
    """Files below a folder of a store."""
    fs.invalidate_cache()
    top = top.rstrip("/")
    return [path[len(top) + 1 :] for path in fs.find(top) if path.startswith(f"{top}/")]


def below_page(fs: Any, top: str) -> list[str]:
    """Files below an index page, as links on it and on the pages it leads down to tell."""
    top = top.rstrip("/") + "/"
    found: list[str] = []
    pages, seen = [top], {top}
    while pages:
        for link in fs.ls(pages.pop(), detail=False):
            link = link.partition("?")[0].partition("#")[0]
            if link.startswith(top) and link not in seen and not link.startswith(f"{top}."):
                seen.add(link)
                (pages if link.endswith("/") else found).append(link)
    return [unquote(link[len(top) :]) for link in found]


def names_in(folder: Url) -> list[str]:
    """The names directly in a folder; none where it cannot be listed."""
    try:
        names = retried(str(folder), lambda fs, path: fs.ls(path.rstrip("/") + "/", detail=False))
    except FetchError:
        return []
    names = [name.rstrip("/").rpartition("/")[2] for name in names]
    return [unquote(name) for name in names] if folder.scheme in WEB else names

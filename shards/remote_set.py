"""A shard set behind an address: its shards come through the cache, the next ones ahead of time."""

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.cache import CACHE_GB, Cache
from shards.errors import ShardError, UserError
from shards.index import FILES, ShardSet, parse_info
from shards.remote import WEB, FetchError, Url, read_bytes
from shards.seal import is_sealed
from shards.transfer import fetch

FETCHERS = 2  # shards on their way at once, beside the one that is waited for
OPEN = 16  # shards held open: what is open cannot make room


@dataclass(frozen=True)
class RemoteSet(ShardSet):
    """A ShardSet whose files are fetched; `path` is the cache. What it holds open stays there."""

    url: Url
    cache: Cache
    _held: "OrderedDict[str, int]" = field(default_factory=OrderedDict, repr=False)
    _wanted: "deque[int]" = field(default_factory=deque, repr=False)
    _fetchers: set[threading.Thread] = field(default_factory=set, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def is_remote(self) -> bool:
        return True

    def __post_init__(self) -> None:
        weakref.finalize(self, close_all, self._held)

    def __str__(self) -> str:
        return str(self.url)

    @property
    def name(self) -> str:
        return self.url.name

    def cache_figures(self) -> dict[str, int]:
        return {"cache_hits": self.cache.hits, "cache_misses": self.cache.misses}

    @property
    def open_at_most(self) -> int:
        """So few that they leave half of the cache to the shards that are coming."""
        return max(1, min(OPEN, self.cache.limit // largest(self.info) // 2))

    def file(self, name: str) -> Path:
        """A file beside the tars; it stays in the cache as long as the set is open."""
        entry = self.info["files"][name]
        self._hold(name, lambda: self.cache.open(str(self.url / name), entry))
        return self.path / entry["sha256"]

    def shard_file(self, shard: int) -> Path:
        """A shard in the cache; it stays there until `open_at_most` others have been asked for."""
        entry = self.info["shards"][shard]
        self._hold(entry["name"], lambda: self.open_shard(shard))
        with self._lock:
            shards = [name for name in self._held if name not in self.info["files"]]
            for name in shards[: -self.open_at_most]:
                os.close(self._held.pop(name))
        return self.path / entry["sha256"]

    def open_shard(self, shard: int) -> int:
        """A descriptor of a shard, which stays in the cache until it is closed."""
        entry = self.info["shards"][shard]
        try:
            return self.cache.open(str(self.url / entry["name"]), entry)
        except FetchError as error:
            raise ShardError(str(error)) from None
        except OSError as error:
            raise ShardError(f"{self.shard_place(shard)}: {error}") from None

    def bring(self, shard: int) -> Iterator[None]:
        """Have it fetched; waits for nothing."""
        self.prefetch([shard])
        return iter(())

    def prefetch(self, shards: Iterable[int]) -> None:
        """Have these shards fetched by threads that end when nothing is left to fetch."""
        with self._lock:
            self._wanted.extend(x for x in dict.fromkeys(shards) if x not in self._wanted)
            for _ in range(min(FETCHERS - len(self._fetchers), len(self._wanted))):
                thread = threading.Thread(target=self._fetch_wanted, name="prefetch", daemon=True)
                self._fetchers.add(thread)
                thread.start()

    def _fetch_wanted(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._fetchers.discard(threading.current_thread())
                    return
                shard = self._wanted.popleft()
            with suppress(ShardError, OSError, UserError):  # whoever needs it will hear of it
                os.close(self.open_shard(shard))

    def _hold(self, name: str, opened: Any) -> None:
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return
        descriptor = opened()
        with self._lock:
            if name in self._held:  # by another thread meanwhile
                os.close(descriptor)
            else:
                self._held[name] = descriptor


def open_remote(url: str, cache_gb: float | None = None, cache: Cache | None = None) -> RemoteSet:
    """Open the shard set at an address; its files beside the tars are fetched and checked.

    Raises:
        UserError: no finished shard set there, no access, or a cache that is too small for it.
    """
    place = Url(url.rstrip("/"))
    if "?" in url and place.scheme in WEB:
        raise UserError(
            f"{url.partition('?')[0]}: the address of a set has no query; "
            "docs/shards.md, Remote, says where a token goes"
        )
    try:
        data = read_bytes(str(place / "dataset.json"))
        info = parse_info(data, place)
        if not is_sealed(data):
            raise UserError(f"{place}/dataset.json: damaged, its own SHA-256 differs; upload again")
        if cache is None:
            cache = Cache(CACHE_GB if cache_gb is None else cache_gb)
        needed = sum(entry["bytes"] for entry in info["files"].values()) + 2 * largest(info)
        if cache.limit < needed:
            raise UserError(
                f"cache_gb={cache.limit / 1e9:g}: the index and two shards of {place} take up "
                f"{needed / 1e9:.2g} GB; give more"
            )
        opened = RemoteSet(cache.folder, info, place, cache)
        for name in info["files"]:
            opened.file(name)
    except FetchError as error:
        raise unopened(error) from None
    return opened


def unopened(error: FetchError) -> UserError:
    """What to tell of a set that could not be fetched."""
    way_out = "build a set there" if error.is_missing else "try again later"
    return UserError(f"{error}; check the address, or {way_out}")


@dataclass(frozen=True)
class Downloaded(ShardSet):
    """A set as it comes off the wire, for those who look for faults; one shard of it at a time."""

    url: Url

    def __str__(self) -> str:
        return str(self.url)

    def shard_file(self, shard: int) -> Path:
        """The bytes of a shard as they come; no file where there are none."""
        for file in self.path.glob("samples-*.tar"):
            file.unlink()
        file = super().shard_file(shard)
        download(self.url / file.name, file)
        return file


def beside(url: Url, folder: Path) -> None:
    """Download what stands beside the tars of a set into a folder.

    Raises:
        UserError: there is no finished set.
    """
    for name in ("dataset.json", *FILES):
        download(url / name, folder / name)
    if not (folder / "dataset.json").exists():
        raise UserError(
            f"{url}: no shard set, or not all of it is there yet; check the address, or build a "
            "set there"
        )


def download(url: Url, file: Path) -> None:
    """Download a file as it is, if it is there.

    Raises:
        UserError: no access, or again and again no answer.
    """
    try:
        fetch(str(url), file)
    except FetchError as error:
        file.unlink(missing_ok=True)
        if not error.is_missing:
            raise unopened(error) from None


def largest(info: Any) -> int:
    """The bytes of the largest shard."""
    return max((entry["bytes"] for entry in info["shards"]), default=1)


def close_all(held: "OrderedDict[str, int]") -> None:
    """Let go of files in the cache."""
    while held:
        os.close(held.popitem()[1])

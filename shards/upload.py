"""A shard set on its way to an address: built on a disk here, each shard sent once it is whole.

dataset.json goes last, and before a file that it lists is replaced it is taken away: who reads the
address finds the old set, the new one or none, and never a mixture.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shards.cache import cache_folder, get
from shards.durable import file_entry, write_atomic
from shards.errors import UserError
from shards.index import FILES, parse_info
from shards.output import SHARD, locked
from shards.remote import WEB, Damaged, FetchError, Url, read_bytes, retried

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks for new shards
LAST = (*FILES, "balance.png", "dataset.json")


def build_there(build: Callable[..., str], words: Mapping[str, Any]) -> str:
    """`build`, but with its OUT at an address. What was stopped goes on, what is there stays.

    Raises:
        UserError: what `build` raises, no access, or another build's set at the address.
    """
    words = dict(words)
    out, stage = words.pop("out"), words.pop("stage")
    url = Url(out.rstrip("/"))
    if words["part"] is not None:
        raise UserError(f"--part with {out}: parts are made and merged on a disk; leave --part out")
    if url.scheme in WEB:
        raise UserError(f"{out}: cannot be written to; give a folder, s3:// or hf://")
    default = f"{url.name}-{hashlib.sha256(str(url).encode()).hexdigest()[:12]}"
    place = Path(stage) if stage is not None else cache_folder() / "stage" / default
    try:
        with locked(place), Upload(url, place, words["overwrite"]) as upload:
            said = build(out=str(upload.folder), **words)
            sent = upload.finish()
    except FetchError as error:
        way_out = "make its bucket or repository" if error.is_missing else "start again to go on"
        raise UserError(f"{error}; {way_out}") from None
    return f"{said.replace(str(upload.folder), out)}\nuploaded    {sent} files to {out}"


class Upload:
    """A set in `place`/set, and in `place`/uploaded.json what of it is at the address by now."""

    def __init__(self, url: Url, place: Path, overwrite: bool):
        self.url, self.folder, self.record = url, place / "set", place / "uploaded.json"
        self.there: dict[str, str] = {}  # names and SHA-256
        self.count = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.send_as_they_come, daemon=True)
        if self.record.exists():
            self.there = json.loads(self.record.read_text(encoding="utf-8"))
        self.compare(overwrite)

    def __enter__(self) -> "Upload":
        self.thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop.set()
        self.thread.join()

    def compare(self, overwrite: bool) -> None:
        """Hold what was sent against what is there; fetch a set that was built elsewhere."""
        sizes = retried(str(self.url), sizes_in)
        self.there = {name: x for name, x in self.there.items() if name in sizes}
        if "dataset.json" not in sizes:
            return
        data = read_bytes(str(self.url / "dataset.json"))
        if hashlib.sha256(data).hexdigest() == self.there.get("dataset.json"):
            return
        if overwrite:
            self.there.pop("dataset.json", None)
            self.take_away("dataset.json")
        elif self.folder.exists():
            raise UserError(
                f"{self.url}: holds another set than was sent from {self.folder}; build into "
                "another place, or replace it by --overwrite"
            )
        else:
            self.pull(data)

    def pull(self, data: bytes) -> None:
        """Fetch the set that is there: a build goes on from it as if it had been made here."""
        self.folder.mkdir(parents=True)
        info = parse_info(data, self.url)
        entries = {entry["name"]: entry for entry in info["shards"]} | info["files"]
        for name, entry in entries.items():
            get(str(self.url / name), self.folder / name, entry)
            self.note(name, entry["sha256"])
        write_atomic(self.folder / "dataset.json", data)
        self.note("dataset.json", hashlib.sha256(data).hexdigest())

    def send_as_they_come(self) -> None:
        """Send shards until told to stop; what fails is left to the end."""
        while not self.stop.wait(POLL):
            try:
                self.send_shards()
            except (FetchError, UserError, OSError) as error:
                logger.warning("%s; tried again later", error)

    def send_shards(self) -> None:
        """Send the whole shards that are not at the address yet."""
        for file in sorted(self.folder.glob("samples-*.tar")):
            self.send(file)

    def finish(self) -> int:
        """Send what is missing, dataset.json last; how many files were sent in all."""
        self.stop.set()
        self.thread.join()
        self.send_shards()
        for name in LAST:
            if (self.folder / name).exists():
                self.send(self.folder / name)
        for name in retried(str(self.url), sizes_in):  # of a larger set before
            if SHARD.fullmatch(name) and not (self.folder / name).exists():
                self.take_away(name)
        return self.count

    def send(self, file: Path) -> None:
        """Send a file unless it is there already."""
        entry = file_entry(file)
        if self.there.get(file.name) == entry["sha256"]:
            return
        if file.name in self.there and "dataset.json" in self.there:
            self.take_away("dataset.json")
            del self.there["dataset.json"]
        retried(str(self.url / file.name), lambda fs, path: put(fs, path, file, entry["bytes"]))
        self.count += 1
        self.note(file.name, entry["sha256"])

    def take_away(self, name: str) -> None:
        """Remove a file at the address."""
        retried(str(self.url / name), lambda fs, path: fs.rm_file(path))

    def note(self, name: str, sha256: str) -> None:
        """Remember that a file is at the address."""
        self.there[name] = sha256
        write_atomic(self.record, json.dumps(self.there, indent=2).encode() + b"\n")


def put(fs: Any, path: str, file: Path, size: int) -> None:
    """Upload a file and see that all of it is there."""
    fs.put_file(str(file), path)
    fs.invalidate_cache()
    found = fs.info(path)["size"]
    if found != size:
        raise Damaged(f"{found} of {size} bytes are there")


def sizes_in(fs: Any, path: str) -> dict[str, int]:
    """The files directly in a folder and their bytes; none if it is not there yet, but its bucket.

    Raises:
        FileNotFoundError: no such bucket.
    """
    fs.invalidate_cache()
    if "s3" in fs.protocol:
        fs.ls(path.partition("/")[0])
    try:
        found = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {x["name"].rpartition("/")[2]: x["size"] for x in found if x["type"] == "file"}

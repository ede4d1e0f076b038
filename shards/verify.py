"""Whether a shard set is what dataset.json says: every byte, row and number of it."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from shards.container import AudioError
from shards.durable import xxh128
from shards.errors import UserError
from shards.index import BESIDE, FILES, SPLITS, ShardSet, current, read_info, sha256
from shards.progress import with_progress
from shards.remote import Url, is_url
from shards.remote_set import Downloaded, beside
from shards.root import Root, as_root, local, tidied
from shards.seal import is_sealed
from shards.tar import BLOCK, entry
from shards.write import npy_header

Line = dict[str, Any]

FAULTS_A_SHARD = 20  # after that many the shard is said to go on so


def verify(path: str, audio: str | None = None) -> list[str]:
    """Every fault of the shard set at `path`, each naming its file; an empty list if it is sound.

    With `audio`, the folder that it was built from, also every recording that changed since.

    Raises:
        UserError: no finished shard set of a format that can be read; `audio` of a converted one.
    """
    if not is_url(path):
        return verify_folder(Path(path), ShardSet, audio)
    with TemporaryDirectory(prefix="wavefold-") as folder:
        url = Url(path.rstrip("/"))
        beside(url, Path(folder))
        return verify_folder(Path(folder), partial(Downloaded, url=url), audio)


def verify_folder(
    path: Path, opened: Callable[[Path, Mapping[str, Any]], ShardSet], audio: str | None
) -> list[str]:
    """Every fault of the set whose files beside the tars are in the folder `path`."""
    file = current(path, "dataset.json")
    if file.is_file() and not is_sealed(file.read_bytes()):  # nothing to hold the rest against
        return ["dataset.json: changed since it was written, its own SHA-256 differs"]
    shard_set = opened(path, read_info(path))
    try:
        faults = check_set(shard_set)
        with tidied():
            return faults if audio is None else faults + check_audio(shard_set, as_root(audio))
    except KeyError as missing:
        return [f"dataset.json: has no {missing}"]


def check_set(shard_set: ShardSet) -> list[str]:
    """Faults of every file, then of every number, then of every sample."""
    info, path = shard_set.info, shard_set.path
    faults = [f for name in FILES for f in check_file(current(path, name), info["files"].get(name))]
    if faults:  # without a sound index there is nothing to hold the tars against
        for number, entry in enumerate(info["shards"]):
            faults += check_file(shard_set.shard_file(number), entry)
        return faults
    faults += check_counts(shard_set)
    lines = shard_set.file("recordings.jsonl").read_bytes().splitlines()  # parsed they fill 2 GB
    shards = np.array(shard_set.index["shard"])
    first = np.searchsorted(shards, np.arange(len(info["shards"]) + 1))
    entries = with_progress(info["shards"], "verify", len(info["shards"]), "shards")
    for number, entry in enumerate(entries):
        file = shard_set.shard_file(number)
        found = check_file(file, entry)
        if file.is_file():
            rows = shard_set.index[first[number] : first[number + 1]]
            mine = np.unique(rows["recording"]).tolist()
            told = {n: json.loads(lines[n]) for n in mine if n < len(lines)}
            found += check_shard(shard_set, entry, file, rows, told)
        faults += found[:FAULTS_A_SHARD]
        if len(found) > FAULTS_A_SHARD:
            faults.append(f"{entry['name']}: {len(found) - FAULTS_A_SHARD} more faults")
    if not (path / BESIDE).exists():  # else they are the next set's
        names = {file.name for file in path.glob("samples-*.tar")}
        unlisted = sorted(names - {entry["name"] for entry in info["shards"]})
        faults += [
            f"{name}: no shard of this set, dataset.json does not list it" for name in unlisted
        ]
    return faults


def check_audio(shard_set: ShardSet, audio: Root) -> list[str]:
    """Recordings that are no longer the files that the set was built from."""
    if "convert" in shard_set.info["settings"]:
        raise UserError(f"{shard_set}: converted, not built from audio; leave --audio out")
    faults = []
    for line in with_progress(shard_set.recordings(), "audio", shard_set.info["recordings"]):
        try:
            with local(audio, line["path"]) as file:
                key, digest = ("xxh128", xxh128) if "xxh128" in line else ("sha256", sha256)  # old
                if not file.is_file():
                    faults.append(f"recording {line['path']!r}: missing below {audio}")
                elif digest(file) != line[key]:
                    what = "its audio changed since the set was built"
                    faults.append(f"recording {line['path']!r}: {what}")
        except AudioError as error:
            faults.append(f"recording {line['path']!r}: {error}")
    return faults


def check_file(file: Path, entry: dict[str, Any] | None) -> list[str]:
    """Faults of a file's size and SHA-256."""
    if entry is None:
        return [f"dataset.json: has no entry for {file.name}"]
    if not file.is_file():
        return [f"{file.name}: missing"]
    size = file.stat().st_size
    if size != entry["bytes"]:
        return [f"{file.name}: {size} bytes, dataset.json says {entry['bytes']}"]
    found = sha256(file)
    if found != entry["sha256"]:
        return [
            f"{file.name}: SHA-256 {found[:12]}..., dataset.json says {entry['sha256'][:12]}..."
        ]
    return []


def check_counts(shard_set: ShardSet) -> Iterator[str]:
    """Faults between dataset.json, index.npy, stats.npy and recordings.jsonl."""
    info, index = shard_set.info, shard_set.index
    count, segments, groups = 0, 0, set()
    for line in shard_set.recordings():
        count, segments = count + 1, segments + line["segments"]
        groups.add(line["group"])
    folds = max(1, len(info["folds"]))
    told = {
        "index.npy rows": (len(index), info["samples"]),
        "samples of all shards": (sum(x["samples"] for x in info["shards"]), info["samples"]),
        "recordings.jsonl lines": (count, info["recordings"]),
        "recordings.jsonl segments": (segments, info["samples"]),
        "recordings.jsonl groups": (len(groups), info["groups"]),
        "stats.npy frames": (
            int(shard_set.stats[..., 0, 0].sum()),
            info["samples"] * info["shape"][1],
        ),
    }
    for what, (found, said) in told.items():
        if found != said:
            yield f"{what}: {found}, dataset.json says {said}"
    for column, end in (
        ("label", len(shard_set.label_sets)),
        ("fold", folds),
        ("split", len(SPLITS)),
        ("shard", len(info["shards"])),
        ("recording", count),
    ):
        values = index[column]
        wrong = np.flatnonzero((values < 0) | (values >= end))
        if len(wrong):
            row = wrong[0]
            yield f"index.npy: {column} {values[row]} in row {row}, has to be below {end}"
    for key, column in (("class", "label"), ("fold", "fold"), ("split", "split")):
        said_counts = [entry["segments"] for entry in info["counts"][key].values()]
        end = len(shard_set.label_sets) if key == "class" else len(said_counts)
        values = index[column][(index[column] >= 0) & (index[column] < end)]
        found_counts = np.bincount(values, minlength=end)
        if key == "class":
            found_counts = shard_set.label_table.T @ found_counts
        if said_counts and found_counts.tolist() != said_counts:
            yield f"index.npy: {column} counts differ from dataset.json's counts of each {key}"


def check_shard(
    shard_set: ShardSet, entry: Line, file: Path, rows: np.ndarray, lines: Mapping[int, Line]
) -> list[str]:
    """Faults of a tar, sample by sample: every byte of it belongs to one, or to the end mark."""
    header = npy_header(np.dtype("<f2"), shard_set.shape)
    end = entry["bytes"] - 2 * BLOCK
    bounds = [*(rows["offset"].astype(np.int64) - len(header) - BLOCK).tolist(), end]
    faults: list[str] = []
    with open(file, "rb") as tar:
        for n, row in enumerate(rows):
            line = lines.get(int(row["recording"]), {})
            begin = bounds[n] if n else 0
            block = read_block(tar, begin, bounds[n + 1])
            where = f"{entry['name']}: sample {key_of(block) or n} of {line.get('path')!r}: "
            if block and begin == bounds[n]:
                faults += [where + x for x in check_sample(shard_set, header, block, row, line)]
            else:
                what = f"index.npy has it at bytes {bounds[n]} to {bounds[n + 1]}"
                faults.append(f"{where}{what}, where the tar has no sample")
        tar.seek(max(0, end))
        if tar.read() != bytes(2 * BLOCK):
            faults.append(f"{entry['name']}: does not end behind its {len(rows)} samples")
    return faults


def read_block(tar: BinaryIO, begin: int, stop: int) -> bytes:
    """The bytes of a sample; none where they are not in the tar."""
    if not 0 <= begin < stop <= os.fstat(tar.fileno()).st_size:
        return b""
    tar.seek(begin)
    return tar.read(stop - begin)


def key_of(block: bytes) -> str:
    """A sample's key, from the first of its two tar headers that is sound."""
    for start in range(0, len(block), BLOCK):
        try:
            name = tarfile.TarInfo.frombuf(block[start : start + BLOCK], "utf-8", "replace").name
        except tarfile.HeaderError:
            continue
        return name.rpartition(".")[0]
    return ""


def check_sample(
    shard_set: ShardSet, header: bytes, block: bytes, row: np.void, line: Line
) -> Iterator[str]:
    """Faults of one sample, a .npy and a .json in the tar: its numbers, then all other bytes."""
    import xxhash

    payload = 2 * shard_set.shape[0] * shard_set.shape[1]
    array = block[BLOCK + len(header) :][:payload]
    behind = 2 * BLOCK + -(-(len(header) + payload) // BLOCK) * BLOCK
    about = block[behind:].rstrip(b"\0")
    if xxhash.xxh3_64_intdigest(array) != int(row["xxh3"]):
        yield "array differs from its XXH3 in index.npy"
    odd = ~np.isfinite(np.frombuffer(array[: len(array) // 2 * 2], "<f2"))
    if odd.any():
        yield f"{int(odd.sum())} values are not finite"
    yield from check_about(shard_set, about, row, line)
    key = key_of(block)
    if b"".join([*entry(f"{key}.npy", header, array), *entry(f"{key}.json", about)]) != block:
        yield "tar or array headers or padding are not as written"


def check_about(shard_set: ShardSet, about: bytes, row: np.void, line: Line) -> Iterator[str]:
    """Faults of a sample's JSON against its row of index.npy and its line of recordings.jsonl."""
    try:
        said = json.loads(about)
    except ValueError as error:
        yield f"its JSON is not readable ({error})"
        return
    said = said if isinstance(said, dict) else {}
    fold = dict(enumerate(shard_set.info["folds"])).get(int(row["fold"]))
    split = dict(enumerate(SPLITS)).get(int(row["split"]))
    expected = {"label": int(row["label"]), "split": split, "fold": fold}
    expected |= {"start": float(row["start"])}
    if {key: said.get(key) for key in expected} != expected:
        yield "its JSON and its row of index.npy differ"
    told = {"class": "label", "recording": "path", "group": "group"}
    if any(said.get(key) != line.get(name) for key, name in told.items()):
        yield "its JSON and its line of recordings.jsonl differ"
    if about != json.dumps(said, sort_keys=True, separators=(",", ":")).encode():
        yield "its JSON is not as written"

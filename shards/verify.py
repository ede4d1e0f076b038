"""Whether a shard set is what dataset.json says: every byte, row and number of it."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.index import FILES, SPLITS, ShardSet, read_info, sha256

FAULTS_A_SHARD = 20  # after that many the shard is said to go on so


def verify(path: str) -> list[str]:
    """Every fault of the shard set at `path`, each naming its file; an empty list if it is sound.

    Raises:
        UserError: no finished shard set of a format that can be read.
    """
    shard_set = ShardSet(Path(path), read_info(Path(path)))
    try:
        return check_set(shard_set)
    except KeyError as missing:
        return [f"dataset.json: has no {missing}"]


def check_set(shard_set: ShardSet) -> list[str]:
    """Faults of every file, then of every number, then of every sample."""
    info = shard_set.info
    faults = [
        f for name in FILES for f in check_file(shard_set.path / name, info["files"].get(name))
    ]
    if faults:  # without a sound index there is nothing to hold the tars against
        return faults + [
            fault for x in info["shards"] for fault in check_file(shard_set.path / x["name"], x)
        ]
    faults += check_counts(shard_set)
    paths = [line["path"] for line in shard_set.recordings()]
    shards = np.array(shard_set.index["shard"])
    first = np.searchsorted(shards, np.arange(len(info["shards"]) + 1))
    for number, entry in enumerate(tqdm(info["shards"], "verify", unit="shard", disable=None)):
        found = check_file(shard_set.path / entry["name"], entry)
        rows = shard_set.index[first[number] : first[number + 1]]
        found += check_shard(shard_set, number, rows, paths)
        faults += found[:FAULTS_A_SHARD]
        if len(found) > FAULTS_A_SHARD:
            faults.append(f"{entry['name']}: {len(found) - FAULTS_A_SHARD} more faults")
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
    lines = list(shard_set.recordings())
    folds = max(1, len(info["folds"]))
    told = {
        "index.npy rows": (len(index), info["samples"]),
        "samples of all shards": (sum(x["samples"] for x in info["shards"]), info["samples"]),
        "recordings.jsonl lines": (len(lines), info["recordings"]),
        "recordings.jsonl segments": (sum(x["segments"] for x in lines), info["samples"]),
        "recordings.jsonl groups": (len({x["group"] for x in lines}), info["groups"]),
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
        ("recording", len(lines)),
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


def check_shard(shard_set: ShardSet, number: int, rows: np.ndarray, paths: list[str]) -> list[str]:
    """Faults of a tar: its structure, and each sample against its index row."""
    name = shard_set.info["shards"][number]["name"]
    faults: list[str] = []
    seen = 0
    try:
        with tarfile.open(shard_set.path / name, "r:") as tar:
            for seen, (array, about) in enumerate(samples(tar), 1):
                if seen > len(rows):
                    continue
                row = rows[seen - 1]
                recording = int(row["recording"])
                where = f"{name}: sample {array.name.removesuffix('.npy')}"
                if recording < len(paths):
                    where += f" of {paths[recording]!r}"
                faults += [
                    f"{where}: {fault}" for fault in check_sample(shard_set, tar, array, about, row)
                ]
    except (tarfile.TarError, OSError, EOFError) as error:
        faults.append(f"{name}: no readable tar after sample {seen} ({error})")
    if seen != len(rows):
        faults.append(f"{name}: {seen} samples, index.npy has {len(rows)}")
    return faults


def samples(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """The members of a shard two by two: KEY.npy, KEY.json.

    Raises:
        tarfile.TarError: they do not pair up.
    """
    members = iter(tar)
    for array in members:
        about = next(members, None)
        key = array.name.removesuffix(".npy")
        if about is None or (array.name, about.name) != (f"{key}.npy", f"{key}.json"):
            raise tarfile.TarError(f"{array.name} is not a .npy with its .json behind it")
        yield array, about


def check_sample(
    shard_set: ShardSet,
    tar: tarfile.TarFile,
    array: tarfile.TarInfo,
    about: tarfile.TarInfo,
    row: np.void,
) -> Iterator[str]:
    """Faults of one sample."""
    import xxhash

    info, content = shard_set.info, read(tar, array)
    payload = 2 * shard_set.shape[0] * shard_set.shape[1]
    if int(row["offset"]) + payload != array.offset_data + len(content):
        yield f"array ends at byte {array.offset_data + len(content)}, index.npy says otherwise"
    if xxhash.xxh3_64_intdigest(content[-payload:]) != int(row["xxh3"]):
        yield "array differs from its XXH3 in index.npy"
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
        said = json.loads(read(tar, about))
    except ValueError as error:
        yield f"not readable ({error})"
        return
    if values.shape != shard_set.shape or values.dtype != np.float16:
        yield f"{values.dtype} {values.shape}, dataset.json says float16 {shard_set.shape}"
    elif not np.isfinite(values).all():
        yield f"{int((~np.isfinite(values)).sum())} values are not finite"
    fold = dict(enumerate(info["folds"])).get(int(row["fold"]))
    split = dict(enumerate(SPLITS)).get(int(row["split"]))
    expected = (int(row["label"]), split, fold, float(row["start"]))
    if (said.get("label"), said.get("split"), said.get("fold"), said.get("start")) != expected:
        yield "its JSON and its row of index.npy differ"


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A member's content."""
    content = tar.extractfile(member)
    assert content is not None
    return content.read()

"""What the benchmarks of batches share: made-up sets, and our loader over them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from shards.feed import Reading
from shards.index import ROW, ShardSet, shard_name
from shards.loader import Loader
from shards.order import plan_batch
from shards.tar import BUFFER, Tar

BATCH, MELS, PER_SHARD = 256, 128, 1000


class InTurn:
    """The order of the index, without an end."""

    def __init__(self, n: int):
        self.n = n

    def batch(self, step: int, places: range) -> np.ndarray:
        return (step * BATCH + np.arange(places.start, places.stop)) % self.n


def write_set(folder: Path, samples: np.ndarray) -> ShardSet:
    """Tars as `shards build` lays them out, and their index."""
    rows = np.zeros(len(samples), ROW)
    for first in range(0, len(samples), PER_SHARD):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for n, sample in enumerate(samples[first : first + PER_SHARD], first):
                content = io.BytesIO()
                np.save(content, sample)
                label = json.dumps({"label": n % 10}).encode()
                for name, data in (("npy", content.getvalue()), ("json", label)):
                    header = tarfile.TarInfo(f"{n:08d}.{name}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                    if name == "npy":  # a tar pads to 512 bytes
                        end = tar.offset - -len(data) % 512
                        rows[n]["offset"] = end - sample.nbytes
        with open(folder / shard_name(first // PER_SHARD), "wb", buffering=BUFFER) as file:
            Tar(file).put(whole.getbuffer())
    rows["shard"], rows["label"] = np.arange(len(rows)) // PER_SHARD, np.arange(len(rows)) % 10
    rows["xxh3"] = [xxhash.xxh3_64_intdigest(sample) for sample in samples]
    return open_rows(folder, rows, samples.shape[1:])


def open_rows(folder: Path, rows: np.ndarray, shape: tuple[int, ...]) -> ShardSet:
    """A shard set with this index over the tars in `folder`."""
    np.save(folder / "index.npy", rows)
    counts = enumerate(np.bincount(rows["shard"]).tolist())
    shards = [{"name": shard_name(shard), "samples": count} for shard, count in counts]
    info = {"shape": list(shape), "shards": shards, "classes": [str(n) for n in range(10)]}
    return ShardSet(folder, info)


def ours(shard_set: ShardSet, order: Any, **reading: Any) -> Loader:
    """Our loader over a whole set."""
    n, plan = len(shard_set.index), plan_batch(BATCH, None, 1)
    return Loader(shard_set, np.arange(n), order, plan, 0, torch.device("cpu"), Reading(**reading))


def random_samples(n: int, frames: int) -> np.ndarray:
    """(n, MELS, frames) float16."""
    random = np.random.default_rng(0)
    return random.standard_normal((n, MELS, frames), np.float32).astype(np.float16)

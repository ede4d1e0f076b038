"""What people use to read batches, each over the same samples: BATCH of them at a time."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import BATCH, PER_SHARD
from torch.utils.data import DataLoader, Dataset

from shards.index import ShardSet

#: The package of each that may not be installed.
PACKAGES = {"litdata": "litdata", "streaming": "mosaicml-streaming", "datasets": "datasets"}


class Files(Dataset):  # type: ignore[type-arg]
    """One .npy a sample."""

    def __init__(self, folder: Path, n: int):
        self.folder, self.n = folder, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.load(self.folder / f"{n:08d}.npy")), n % 10


class Memmap(Dataset):  # type: ignore[type-arg]
    """One .npy for all samples, memory-mapped."""

    def __init__(self, file: Path):
        self.samples = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.array(self.samples[n])), n % 10


def workers(
    dataset: Any, count: int, shuffle: bool | None = None, batch: int | None = BATCH, **words: Any
) -> Any:
    """A DataLoader over a dataset; new workers for each pass."""
    return DataLoader(dataset, batch, shuffle=shuffle, num_workers=count, **words)


def webdataset(shard_set: ShardSet, count: int) -> Any:
    import webdataset as wds

    urls = [str(path) for path in shard_set.shard_paths]
    stream = wds.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "json")
    return workers(stream.batched(BATCH), count, batch=None)


def litdata(folder: Path, samples: np.ndarray) -> Any:
    import litdata as ld

    ld.optimize(
        lambda n: {"x": samples[n], "y": n % 10}, list(range(len(samples))), str(folder / "lit"),
        chunk_bytes="64MB", num_workers=1, start_method="fork", verbose=False,
    )  # fmt: skip
    data = ld.StreamingDataset(str(folder / "lit"), shuffle=False)
    return lambda count: ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=count)


def streaming(folder: Path, samples: np.ndarray) -> Any:
    from streaming import MDSWriter, StreamingDataset

    kind = "ndarray:float16:" + ",".join(map(str, samples.shape[1:]))
    with MDSWriter(out=str(folder / "mds"), columns={"x": kind, "y": "int"}) as out:
        for n, sample in enumerate(samples):
            out.write({"x": sample, "y": n % 10})

    def loader(count: int) -> Any:
        # Its locks refuse to be inherited by a fork (filelock 3.20 and later).
        start = {"multiprocessing_context": "forkserver"} if count else {}
        data = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=BATCH)
        return workers(data, count, **start)

    return loader


def datasets(folder: Path, samples: np.ndarray) -> Any:
    from datasets import (
        Array2D,
        Dataset,
        Features,
        Value,
        concatenate_datasets,
        disable_progress_bars,
        load_from_disk,
    )

    disable_progress_bars()
    kinds = Features({"x": Array2D(samples.shape[1:], "float16"), "y": Value("int64")})
    parts = [
        Dataset.from_dict({"x": list(x), "y": [n % 10 for n in range(len(x))]}, features=kinds)
        for x in np.array_split(samples, -(-len(samples) // PER_SHARD))
    ]
    concatenate_datasets(parts).save_to_disk(str(folder / "arrow"))
    data = load_from_disk(str(folder / "arrow")).with_format("torch")
    return lambda count: workers(data, count)


def installed() -> list[str]:
    """Which of PACKAGES can be measured here."""
    return [name for name in PACKAGES if importlib.util.find_spec(name)]


def makers(folder: Path, shard_set: ShardSet, samples: np.ndarray) -> dict[str, Any]:
    """By name: a number of worker processes -> whoever is iterated over. Converts the samples."""
    (folder / "files").mkdir()
    for n, sample in enumerate(samples):
        np.save(folder / "files" / f"{n:08d}.npy", sample)
    np.save(folder / "all.npy", samples)
    found: dict[str, Callable[[int], Any]] = {
        "webdataset": partial(webdataset, shard_set),
        "npy files": lambda count: workers(Files(folder / "files", len(samples)), count, True),
        "memmap": lambda count: workers(Memmap(folder / "all.npy"), count, True),
    }
    return found | {name: globals()[name](folder, samples) for name in installed()}

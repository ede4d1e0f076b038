"""Training batches from the page cache: our loader beside what people use, on the same samples.

Every contestant hands out batches of 256 samples, float16 of (128, frames), and their labels. Who
is not installed is left out: `pip install -e .[bench]`.
"""

import gc
import importlib.util
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import xxhash
from side_by_side import (
    MARKS,
    Turn,
    arguments,
    conditions,
    mark,
    one_thread,
    publish,
)
from torch.utils.data import DataLoader, Dataset

from shards.feed import BUFFERS, Reading
from shards.index import ROW, ShardSet, shard_name
from shards.loader import Loader
from shards.order import Order, plan_batch, share

BATCH, MELS, PER_SHARD = 256, 128, 1000
CPU = torch.device("cpu")
PEERS = ("litdata", "streaming", "datasets")


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
        with tarfile.open(folder / shard_name(first // PER_SHARD), "w") as tar:
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
    rows["shard"], rows["label"] = np.arange(len(rows)) // PER_SHARD, np.arange(len(rows)) % 10
    rows["xxh3"] = [xxhash.xxh3_64_intdigest(sample) for sample in samples]
    return open_rows(folder, rows, samples.shape[1:])


def open_rows(folder: Path, rows: np.ndarray, shape: tuple[int, ...]) -> ShardSet:
    """A shard set with this index over the tars in `folder`."""
    np.save(folder / "index.npy", rows)
    names = [{"name": tar.name} for tar in sorted(folder.glob("*.tar"))]
    info = {"shape": list(shape), "shards": names, "classes": [str(n) for n in range(10)]}
    return ShardSet(folder, info)


def ours(shard_set: ShardSet, order: Any, **reading: Any) -> Loader:
    """Our loader over a whole set."""
    n, plan = len(shard_set.index), plan_batch(BATCH, None, 1)
    return Loader(shard_set, np.arange(n), order, plan, 0, CPU, Reading(**reading))


def handed_out(loader: Any) -> Iterator[Any]:
    """Batches without an end, epoch after epoch."""
    while True:
        yield from loader


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


class Contestant(NamedTuple):
    """Who hands out batches: begun anew for each turn, so that nobody reads ahead in another's."""

    begin: Callable[[], Iterator[Any]]
    ahead: int  #: batches before the clock starts: what was read ahead, what stays in memory
    steps: int  #: batches under the clock


def take_turns(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[Turn]]:
    """All once unmeasured, then A B C A B C ..."""
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for n in range(-1, rounds):
        for name, (begin, ahead, steps) in contestants.items():
            stream = begin()
            for _ in range(ahead):
                next(stream)
            wall, cpu = perf_counter(), process_time() + elsewhere()
            for _ in range(steps):
                next(stream)
            turn = Turn(perf_counter() - wall, process_time() + elsewhere() - cpu)
            stream.close()  # type: ignore[attr-defined]
            del stream
            gc.collect()  # worker processes end with their iterator
            if n >= 0:
                turns[name].append(turn)
    return turns


def elsewhere() -> float:
    """CPU seconds that living child processes have used so far."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def copies(samples: np.ndarray, threads: int) -> Iterator[int]:
    """Copy into buffers like a feed's, by as many threads."""
    buffers = torch.zeros((BUFFERS, BATCH, *samples.shape[1:]), dtype=torch.float16).numpy()
    parts = [share(BATCH, n, threads) for n in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for step in count():
            at, buffer = step * BATCH % (len(samples) - BATCH), buffers[step % BUFFERS]

            def copy(part: range, at: int = at, buffer: np.ndarray = buffer) -> None:
                np.copyto(buffer[part.start : part.stop], samples[at:][part.start : part.stop])

            list(pool.map(copy, parts))
            yield BATCH


def contestants(folder: Path, samples: np.ndarray, steps: int) -> dict[str, Contestant]:
    """By name; a number in it is that of worker processes."""
    for name in ("tars", "files"):
        (folder / name).mkdir()
    shard_set = write_set(folder / "tars", samples)
    for n, sample in enumerate(samples):
        np.save(folder / "files" / f"{n:08d}.npy", sample)
    np.save(folder / "all.npy", samples)
    n, epoch = len(samples), len(samples) // BATCH
    cores = len(os.sched_getaffinity(0))
    found = {"memory copy": Contestant(lambda: copies(samples, cores), 2 * epoch, steps)}
    for name, order, words in (
        ("shards, in turn", InTurn(n), {}),
        ("shards, shuffled", Order(n, BATCH, 0), {}),
        ("shards, shuffled, in memory", Order(n, BATCH, 0), {"resident": "memory"}),
    ):
        loader = ours(shard_set, order, threads=cores, **words)
        found[name] = Contestant(partial(loader.steps, 0, 1 << 40), 2 * epoch, steps)
    first = ours(shard_set, Order(n, BATCH, 0), threads=cores)
    begin = partial(first.steps, 0, 1 << 40)
    found["shards, shuffled, first epoch"] = Contestant(begin, 2, epoch - 8)
    makers: dict[str, Any] = {
        "webdataset": partial(webdataset, shard_set),
        "npy files": lambda count: workers(Files(folder / "files", n), count, True),
        "memmap": lambda count: workers(Memmap(folder / "all.npy"), count, True),
    }
    makers |= {x: globals()[x](folder, samples) for x in PEERS if importlib.util.find_spec(x)}
    for name, make in makers.items():
        for number in (0, 1, 2):  # two workers read four batches ahead
            begin = partial(lambda make, number: handed_out(make(number)), make, number)
            found[f"{name}, {number}"] = Contestant(begin, 6, epoch - 8)
    return found


def per_sample(runs: list[Turn], batches: int, clock: str) -> list[float]:
    return [getattr(run, clock) / (batches * BATCH) for run in runs]


def table(turns: dict[str, list[Turn]], steps: dict[str, int], sample: int) -> list[str]:
    """A Markdown table: rates and CPU time."""
    lines = ["| | samples/s | spread | GB/s | CPU us a sample |", "|---|---|---|---|---|"]
    for name, runs in turns.items():
        rates = sorted(1 / x for x in per_sample(runs, steps[name], "wall"))
        cpu = 1e6 * median(per_sample(runs, steps[name], "cpu"))
        lines.append(
            f"| {name} | {median(rates):,.0f} | {rates[0]:,.0f} to {rates[-1]:,.0f} | "
            f"{median(rates) * sample / 1e9:.2f} | {cpu:.2f} |"
        )
    return lines


def marks(turns: dict[str, list[Turn]], steps: dict[str, int]) -> list[str]:
    """What issue 5 asks for, against each peer's best number of workers."""
    each = {
        (name, clock): per_sample(runs, steps[name], clock)
        for name, runs in turns.items()
        for clock in Turn._fields
    }

    def times_faster(slow: str, fast: str, clock: str = "wall") -> list[float]:
        names = [name for name in turns if name.partition(",")[0] == slow]
        best = min(names, key=lambda name: median(each[name, clock]))
        pairs = zip(each[best, clock], each[fast, clock], strict=True)
        return sorted(a / b for a, b in pairs)

    lines = []
    for way in ("shards, shuffled", "shards, shuffled, in memory"):
        for peer, least in (
            ("webdataset", 25), ("npy files", 10), ("memmap", 3), ("litdata", 6), ("streaming", 6),
            ("datasets", 10),
        ):  # fmt: skip
            if f"{peer}, 0" in turns:
                lines.append(mark(f"{peer} : {way}", times_faster(peer, way), least))
        cpu = times_faster("webdataset", way, "cpu")
        lines.append(mark(f"webdataset : {way}, CPU seconds", cpu, 20))
        lines.append(mark(f"{way} : memory copy", times_faster("memory copy", way), 0.7, "{:.0%}"))
    pairs = zip(each["shards, in turn", "wall"], each["shards, shuffled", "wall"], strict=True)
    lines.append(mark("shuffled : in turn", sorted(a / b for a, b in pairs), 0.95, "{:.0%}"))
    return lines


def beginnings(shard_set: ShardSet, folder: Path, rounds: int, forward: float) -> list[str]:
    """The first batch of a million samples, also at step 10^6; cold shards beside dd.

    `forward` is webdataset's seconds a batch: fast-forwarding is taken for 10^6 times as long.
    """
    (folder / "million").mkdir()
    for tar in shard_set.shard_paths:
        (folder / "million" / tar.name).symlink_to(tar)
    rows = np.random.default_rng(0).choice(shard_set.index, 10**6)
    big = open_rows(folder / "million", rows, shard_set.shape)
    del rows
    lines = []
    for about, step in (("first batch of 10^6 samples, ms", 0), ("the same at step 10^6", 10**6)):
        took = []
        for _ in range(rounds):
            began = perf_counter()
            opened = ShardSet(big.path, big.info)
            steps = ours(opened, Order(10**6, BATCH, 0)).steps(step, step + 10)
            next(steps)
            took.append(1e3 * (perf_counter() - began))
            steps.close()
        lines.append(
            f"| {about} | {median(took):.1f} | {min(took):.1f} to {max(took):.1f} | 50 | |"
        )
    ahead = sorted(1e9 * forward / x for x in took)
    lines.append(mark("webdataset forwarded to step 10^6 (extrapolated) : ours", ahead, 100))
    files, n = shard_set.shard_paths, len(shard_set.index)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for run in (lambda: dd(files), lambda: whole_pass(shard_set, n)):
            for file in files:
                forget(file)
            began = perf_counter()
            run()
            seconds.append(perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    lines.append(mark("cold, in turn : dd bs=1M", sorted(ratios), 0.9, "{:.0%}"))
    return lines


def dd(files: list[Path]) -> None:
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"], check=True)


def whole_pass(shard_set: ShardSet, n: int) -> None:
    for _ in ours(shard_set, InTurn(n)).steps(0, n // BATCH):
        pass


def forget(file: Path) -> None:
    """Have the kernel drop a file from its cache."""
    with open(file, "rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    words = arguments(__doc__ or "", rounds=5, samples=8192, steps=100)
    one_thread()
    cores = sorted(os.sched_getaffinity(0))
    lines = []
    for used in (1, 2)[: len(cores)]:
        os.sched_setaffinity(0, cores[-used:])
        for frames in (157, 250):
            random = np.random.default_rng(0)
            samples = random.standard_normal((words.samples, MELS, frames), np.float32)
            samples = samples.astype(np.float16)
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                found = contestants(folder, samples, words.steps)
                steps = {name: each.steps for name, each in found.items()}
                turns = take_turns(found, words.rounds)
                lines += ["", f"### {used} core(s), samples of (128, {frames})", ""]
                lines += table(turns, steps, samples[0].nbytes) + MARKS + marks(turns, steps)
                rows = np.load(folder / "tars/index.npy")
                opened = open_rows(folder / "tars", rows, samples.shape[1:])
                forward = min(
                    median(run.wall for run in turns[name]) / steps[name]
                    for name in turns if name.startswith("webdataset")
                )  # fmt: skip
                lines += beginnings(opened, folder, words.rounds, forward)
    packages = ["numpy", "torch", "webdataset", "xxhash"]
    known = {"litdata": "litdata", "streaming": "mosaicml-streaming", "datasets": "datasets"}
    packages += [known[name] for name in PEERS if importlib.util.find_spec(name)]
    about = "The number behind a name is that of worker processes; marks take the best of them."
    lines = [conditions(words.rounds, packages), about, *lines]
    publish("loader", "Batches from the page cache", lines, words.write)


if __name__ == "__main__":
    main()

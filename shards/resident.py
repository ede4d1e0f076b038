"""Samples that stay where the training needs them, once they were read.

`n` samples of a selection, `P` of one step, `M` mel bands, `T` frames.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.errors import UserError
from shards.maps import take
from shards.read import Reader

log = logging.getLogger(__name__)

_NEVER = np.iinfo(np.int64).max
SHARE = 4  # a set stays if it takes at most a quarter of what is free


class Store:
    """Brings samples from a reader to the device, and keeps them there, in memory, or nowhere.

    `where` is device, memory or none. Filled while the first epoch runs: a sample is read from its
    shard once, and has the same bytes ever after.
    """

    def __init__(
        self, where: str, numbers: np.ndarray, shape: tuple[int, int], device: torch.device
    ):
        self.where, self.device = where, device
        self.numbers = np.unique(numbers)
        n = 0 if where == "none" else len(self.numbers)
        self._first = int(self.numbers[0]) if n else 0
        self._gaps = bool(n) and int(self.numbers[-1]) - self._first >= n
        # numpy asks for huge pages, in which scattered samples are found faster.
        empty = torch.from_numpy(np.empty((n if where == "memory" else 0, *shape), np.float16))
        if where == "device":
            empty = torch.empty((n, *shape), dtype=torch.float16, device=device)
        self._data = empty
        self._since = np.full(n, _NEVER)  # the step that read a sample
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def is_full(self) -> bool:
        """Whether every sample is here."""
        return self.where != "none" and bool((self._since != _NEVER).all())

    def fill(
        self,
        step: int,
        reader: Reader,
        rows: np.ndarray,
        numbers: np.ndarray,
        x: np.ndarray,
        places: np.ndarray,
        fresh: np.ndarray,
    ) -> None:
        """Read the samples of these rows of the index, or find them; called by reading threads.

        Fills x (P, M, T), or where the samples stay on the device `places` (P,) among them and
        which of them are `fresh` (P,): only these are in x.
        """
        if self.where == "none":
            reader.read_rows(rows, numbers, x, np.arange(len(rows)))
            return
        places[:] = np.searchsorted(self.numbers, numbers) if self._gaps else numbers - self._first
        # What a later step has read already, another thread's, is not on the device for this one.
        fresh[:] = self._since[places] > (step if self.where == "device" else _NEVER - 1)
        new = np.flatnonzero(fresh)
        if len(new):
            out, at = (x, new) if self.where == "device" else (self._data.numpy(), places[new])
            reader.read_rows(rows[new], numbers[new], out, at)
            self._since[places[new]] = step
        if self.where == "memory":
            take(self._data.numpy(), places, x)

    def take(
        self, x: torch.Tensor, y: torch.Tensor, places: np.ndarray, fresh: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """x and y on the device, and the CUDA event after which the host's may be overwritten.

        Called for one step after the other: what a step found there, earlier ones have moved.
        """
        if self._stream is None:
            return self._stay(x, places, fresh), y, None
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            moved, labels = self._stay(x, places, fresh), y.to(self.device, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
            copied.record()
        current.wait_stream(self._stream)
        for tensor in (moved, labels):
            tensor.record_stream(current)  # its memory is not for others before this stream is done
        return moved, labels, copied

    def _stay(self, x: torch.Tensor, places: np.ndarray, fresh: np.ndarray) -> torch.Tensor:
        if self.where != "device":
            return x.to(self.device, non_blocking=True)
        at = torch.from_numpy(places).to(self.device, non_blocking=True)
        if fresh.any():
            new = torch.from_numpy(np.flatnonzero(fresh))
            self._data[at[new.to(self.device)]] = x[new].to(self.device)
        return self._data.index_select(0, at)


def choose(resident: str, size: int, device: torch.device, processes: int) -> str:
    """Where `size` bytes of samples stay: what is asked for, or for `auto` what they fit into.

    They fit if they take a quarter of the device's free memory, or of the host's, which the
    `processes` of a machine share.

    Raises:
        UserError: they do not fit at all where they are asked to stay.
    """

    def room(where: str) -> int:
        if where == "device" and device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0]
        return free_memory() // processes

    if resident == "auto":
        places = ["device", "memory"] if device.type == "cuda" else ["memory"]
        return next((where for where in places if size <= room(where) // SHARE), "none")
    if resident != "none" and 0 < room(resident) < size:
        raise UserError(
            f"data.resident={resident}: the samples take {size / 1e9:,.3g} GB and "
            f"{room(resident) / 1e9:,.3g} GB are free; use auto or none"
        )
    return resident


def free_memory() -> int:
    """Bytes that this process could still use: the machine's, or what its control group leaves; 0
    where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, StopIteration):
        return 0
    group = next((line[3:] for line in groups if line.startswith("0::")), "/")
    folder = Path("/sys/fs/cgroup", group.lstrip("/"))
    limits = [left(at) for at in (folder, *folder.parents) if (at / "memory.max").is_file()]
    return min([1024 * int(kilobytes), *limits])


def left(group: Path) -> int:
    """Bytes between a control group's limit and what it holds for good; a cache can be dropped."""
    limit = (group / "memory.max").read_text().strip()
    held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return 1 << 62 if limit == "max" else int(limit) - int(held["anon"])

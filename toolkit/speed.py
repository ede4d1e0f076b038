"""How fast a training is: the bar, FLOPs and their share of the device's peak, a profile."""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from shards.index import ShardSet
from shards.loader import Loader
from toolkit.models import build
from toolkit.schema import Config, ModelConfig
from toolkit.world import World

log = logging.getLogger(__name__)

T = TypeVar("T")

WARM_UP = 5  #: steps before the profile, where there are as many: kernels are chosen
PROFILED = 3  #: steps in it

#: 10^12 dense operations a second: of float32 matrices (TF32 where the device has it), of 16 bit
#: ones summed in float32. The first name among the words of the device's counts. Sources: NVIDIA's
#: data sheets of each (sparse figures halved); GeForce: the GA102, AD102 and RTX Blackwell papers.
PEAKS = {
    "B200": (1125.0, 2250.0),
    "H200 NVL": (417.5, 835.5),
    "H200": (494.7, 989.4),
    "GH200": (494.7, 989.4),
    "H100 NVL": (417.5, 835.5),
    "H100 PCIe": (378.0, 756.0),
    "H100": (494.7, 989.4),
    "A100": (156.0, 312.0),
    "A40": (74.8, 149.7),
    "A30": (82.0, 165.0),
    "A10G": (35.0, 70.0),
    "A10": (62.5, 125.0),
    "L40S": (183.0, 362.0),
    "L40": (90.5, 181.0),
    "L4": (60.0, 121.0),
    "V100-PCIE": (14.0, 112.0),
    "V100": (15.7, 125.0),
    "T4": (8.1, 65.0),
    "RTX A6000": (77.4, 154.8),
    "RTX 3090 Ti": (40.0, 80.0),
    "RTX 3090": (35.6, 71.0),
    "RTX 4090": (82.6, 165.2),
    "RTX 5090": (104.8, 209.5),
}


def peak_flops(name: str, precision: str) -> float | None:
    """The most operations a second that a device can do in `precision`; None: not known."""
    found = (p for part, p in PEAKS.items() if re.search(rf"\b{part}\b(?! Laptop| D\b)", name))
    full, half = next(found, (None, None))
    peak = full if precision == "no" else half
    return peak and peak * 1e12


def flops_a_sample(config: ModelConfig, n_classes: int, shape: tuple[int, int]) -> float:
    """Floating-point operations of one sample's forward and backward, counted, nothing computed."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, for a tenth of a start

    with torch.device("meta"):
        model = build(config, n_classes, shape)
        x = torch.zeros(config.norm_batch, 1, *shape)
        y = torch.zeros(config.norm_batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops() / config.norm_batch


class Meter:
    """What this rank's line of metrics.jsonl says of speed and memory."""

    def __init__(self, config: Config, shard_set: ShardSet, world: World):
        self.device, self.share = world.device, 0.0
        if world.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(world.device), world.precision)
            if peak:
                n_classes, shape = len(shard_set.class_names), config.input_shape(shard_set.shape)
                self.share = flops_a_sample(config.model, n_classes, shape) / peak

    def figures(self, loader: Loader) -> dict[str, float]:
        """The loader's, the peak of the GPU's memory so far, and the model's FLOPs as a share of
        the peak of a device that is known: MFU (Chowdhery et al., PaLM, 2022)."""
        found = loader.figures()
        if self.device.type == "cuda":
            found["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3)
        if self.share:
            found["mfu"] = round(self.share * found["samples_per_s"], 4)
        return found


def progress_bar(world: World, batch_size: int, step: int, target: int) -> "tqdm[Any]":
    """Samples, samples a second and the time left, on rank 0's terminal."""
    quiet = not (world.is_main and sys.stderr.isatty())
    return tqdm(
        total=target * batch_size, initial=step * batch_size, unit=" samples", disable=quiet,
        leave=False,
    )  # fmt: skip


def profiled(steps: Iterable[T], count: int, folder: Path) -> Iterator[T]:
    """The `count` steps as they come, PROFILED of them, after a warm-up, under torch's profiler.

    Leaves trace.json.gz (for chrome://tracing or Perfetto) and the table profile.txt in `folder`.
    """
    rest = iter(steps)
    yield from islice(rest, max(0, min(WARM_UP, count - PROFILED)))
    gpu = torch.cuda.is_available()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells of its own doings
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, profile_memory=True) as found:
        yield from islice(rest, PROFILED)
    found.export_chrome_trace(str(folder / "trace.json.gz"))
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=30)
    (folder / "profile.txt").write_text(table + "\n", encoding="utf-8")
    log.info("profile: %s, and trace.json.gz beside it", folder / "profile.txt")
    yield from rest

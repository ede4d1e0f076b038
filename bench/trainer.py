"""A step of our training beside those of others: cnn_small, batch 32 of (128, 157), on a CPU.

Every contestant trains in processes of its own and takes some steps a turn. Who is not installed is
left out: `pip install -e .[bench]`. Whoever is not ours gets its batches as tensors in memory, but
for the last table, where webdataset reads them. Each of --parts is a section of RESULTS.md.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import contestants
import torch
from contestants import BATCH, CLASSES, bare, librosa_like, noise, stock, wavefold
from pace import Paced
from side_by_side import MARKS, Turn, arguments, conditions, mark, publish, ratio, take_turns

from shards.index import open_set
from toolkit.schema import ModelConfig
from toolkit.speed import flops_a_sample, peak_flops

PEERS = ("lightning", "transformers")


def raced(contestants: dict[str, Paced], rounds: int) -> dict[str, list[Turn]]:
    try:
        return take_turns(contestants, rounds)
    finally:
        for contestant in contestants.values():
            contestant.stop()


def table(turns: dict[str, list[Turn]], steps: int) -> list[str]:
    """Milliseconds a step."""
    lines = ["", "| | ms a step | spread | CPU ms a step |", "|---|---|---|---|"]
    for name, runs in turns.items():
        wall = sorted(1e3 * run.wall / steps for run in runs)
        cpu = median(1e3 * run.cpu / steps for run in runs)
        lines.append(
            f"| {name} | {median(wall):.2f} | {wall[0]:.2f} to {wall[-1]:.2f} | {cpu:.2f} |"
        )
    return lines


def loops(shards: str, words: Any, core: list[int]) -> list[str]:
    """Our loop beside a bare one and those of others."""
    peers = [name for name in PEERS if importlib.util.find_spec(name)]
    trains = {"bare loop": bare, "wavefold": wavefold}
    trains |= {name: getattr(contestants, name) for name in peers}
    turns = raced(
        {
            name: Paced(partial(train, shards, "cnn_small"), words.steps, core)
            for name, train in trains.items()
        },
        words.rounds,
    )
    lines = ["Several loops, one core", *table(turns, words.steps), *MARKS]
    for clock in Turn._fields:
        share = ratio(turns["bare loop"], turns["wavefold"], clock)
        lines.append(mark(f"bare loop : wavefold, {clock}", share, 0.99, "{:.1%}"))
    for name in peers:
        for clock in Turn._fields:
            times = ratio(turns[name], turns["wavefold"], clock)
            lines.append(mark(f"{name} : wavefold, {clock}", times, 1.0, "{:.3f}x"))
    return lines


def host(shards: str, words: Any, cores: list[int]) -> list[str]:
    """What is left of a step when the model does nothing and samples are small."""
    steps = 100 * words.steps
    trains = {
        "wavefold": partial(wavefold, shards, "nothing", threads=1),
        "bare loop": partial(bare, shards, "nothing"),
        "forward, loss and backward": partial(bare, shards, "nothing", whole=False),
    }
    turns = raced({name: Paced(x, steps, cores) for name, x in trains.items()}, words.rounds)
    about = "The host: a model of nearly no work, samples of (8, 16), one thread"
    lines = [about, *table(turns, steps), *MARKS]
    for more, less in ((0, 2), (1, 2), (0, 1)):
        names = list(turns)[more], list(turns)[less]
        pairs = zip(*(turns[name] for name in names), strict=True)
        micros = sorted(1e6 * (a.wall - b.wall) / steps for a, b in pairs)
        lines.append(mark(" - ".join(names) + ", us: at most", micros, 200, "{:.0f}", most=True))
    return lines


def together(shards: str, words: Any, cores: list[int]) -> list[str]:
    """Two processes that train as one, beside two that have nothing to do with each other."""
    one, two = cores[:1], cores[1:2]
    alone = partial(wavefold, shards, "cnn_small")
    turns = raced(
        {
            "two independent": Paced(alone, words.steps, one, two, joined=False),
            "two joined": Paced(partial(alone, batch_size=2 * BATCH), words.steps, one, two),
        },
        words.rounds,
    )
    lines = ["Two processes, each with one core and 32 samples", *table(turns, words.steps)]
    share = ratio(turns["two independent"], turns["two joined"])
    return [*lines, *MARKS, mark("two independent : two joined", share, 0.95, "{:.1%}")]


def alternative(shards: str, folder: Path, words: Any, cores: list[int]) -> list[str]:
    """A user's script without us, as `accelerate launch` starts it: with one thread."""
    tars = librosa_like(shards, folder)
    ours = partial(wavefold, shards, "cnn_small")
    read, held = partial(stock, shards, tars), partial(stock, shards, [])
    turns = raced(
        {
            "accelerate and webdataset": Paced(read, words.steps, cores),
            "and two workers": Paced(partial(read, workers=2), words.steps, cores),
            "accelerate, batches in memory": Paced(held, words.steps, cores),
            "wavefold, one thread": Paced(partial(ours, threads=1), words.steps, cores),
            "wavefold": Paced(ours, words.steps, cores, threads=len(cores)),
        },
        words.rounds,
    )
    about = f"A user's script, as accelerate launch starts it on {len(cores)} cores"
    lines = [about, *table(turns, words.steps), *MARKS]
    names = ["accelerate and webdataset", "accelerate, batches in memory", "wavefold, one thread"]
    best = min(list(turns)[:2], key=lambda name: median(run.wall for run in turns[name]))
    lines.append(mark(f"{best} : wavefold", ratio(turns[best], turns["wavefold"]), 1.3))
    for slow, fast in zip(names, [*names[1:], "wavefold"], strict=True):
        lines.append(mark(f"of it {slow} : {fast}", ratio(turns[slow], turns[fast]), 1.0))
    return lines


def on_gpu(shards: str, words: Any, cores: list[int]) -> list[str]:
    """bf16, channels_last and torch.compile beside eager float32, of a CNN and a ViT; their MFU."""
    slow, fast = "eager float32", "bf16, channels_last, compiled"
    ways = {slow: {"precision": "no"}}
    ways[fast] = {"precision": "bf16", "compile": "default", "channels_last": True}
    size, steps, models = 16 * BATCH, 10 * words.steps, ("cnn_small", "vit_large")
    ours = partial(wavefold, shards, batch_size=size)
    turns = raced(
        {
            f"{model}, {way}": Paced(partial(ours, model=model, **flags), steps, cores)
            for model, (way, flags) in product(models, ways.items())
        },
        words.rounds,
    )
    name = torch.cuda.get_device_name()
    lines = [f"{name}, batch {size}", *table(turns, steps), "", "| | MFU |", "|---|---|"]
    for model, (way, flags) in product(models, ways.items()):
        peak = peak_flops(name, str(flags["precision"]))
        flops = flops_a_sample(ModelConfig(name=model), CLASSES, open_set(Path(shards)).shape)
        wall = median(run.wall for run in turns[f"{model}, {way}"]) / steps
        share = f"{flops * size / wall / peak:.1%}" if peak else "not known: see toolkit/speed.py"
        lines.append(f"| {model}, {way} | {share} |")
    lines += MARKS
    for model in models:
        times = ratio(turns[f"{model}, {slow}"], turns[f"{model}, {fast}"])
        lines.append(mark(f"{model}, {slow} : {fast}", times, 1.0))
    return lines


def main() -> None:
    """Measure, print, and put into RESULTS.md what was asked."""
    several = "loops,host,together,alternative" + ",gpu" * torch.cuda.is_available()
    words = arguments(__doc__ or "", rounds=7, steps=7, parts=several)
    cores = sorted(os.sched_getaffinity(0))
    packages = ["torch", "accelerate", "webdataset", *filter(importlib.util.find_spec, PEERS)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small = {"n_mels": 8, "n_fft": 512, "hop_length": 128}
        tiny = noise(folder / "tiny", 640, 0.128, **small)
        shards = noise(folder / "noise", 640, 5.0, n_mels=128, n_fft=2048, hop_length=512)
        parts: dict[str, Callable[[], list[str]]] = {
            "loops": lambda: loops(shards, words, cores[:1]),
            "host": lambda: host(tiny, words, cores),
            "together": lambda: together(shards, words, cores),
            "alternative": lambda: alternative(shards, folder / "stock", words, cores),
            "gpu": lambda: on_gpu(shards, words, cores),
        }
        for name in words.parts.split(","):
            about, *lines = parts[name]()
            lines = [conditions(words.rounds, packages), *lines]
            command = f"trainer.py --parts={name} --steps={words.steps}"
            publish(f"trainer-{name}", f"A training step. {about}", lines, words.write, command)


if __name__ == "__main__":
    main()

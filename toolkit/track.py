"""What a run leaves of itself while it trains: metrics.jsonl, config.yaml, model.json."""

import atexit
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import shards
from shards.index import ShardSet, write_atomic
from shards.order import BatchPlan
from shards.selection import Selection
from toolkit.data import link_of
from toolkit.environment import write_environment
from toolkit.hub import EPOCHS, Pusher, check_hub
from toolkit.predictions import LEVELS
from toolkit.protocol import CAUTION
from toolkit.schema import Config, TrainConfig
from toolkit.tracker import ID_FILE, Aside, check_trackers, close_all, open_trackers
from toolkit.world import World

log = logging.getLogger(__name__)

PLACES = ("epoch", "seconds", "samples")  #: what every line has beside its step and its numbers


class Metrics:
    """Appends to metrics.jsonl, one object a line, and tells the trackers the same.

    Lines of steps that are trained again go. `folder` is the run's, `step` where it goes on, and
    only an `enabled` one, that of rank 0, writes at all.
    """

    def __init__(self, folder: Path, config: Config, step: int, enabled: bool):
        self.file, self.enabled, self.step = folder / "metrics.jsonl", enabled, step
        self.trackers: list[Aside | Pusher] = []
        if enabled and self.file.exists():
            kept = [line for line in self.file.read_text().splitlines() if keeps(line, step)]
            write_atomic(self.file, "".join(line + "\n" for line in kept).encode())
        if enabled:
            self.trackers = open_trackers(config, folder, step)
            atexit.register(self.close)  # of a training that fails or is stopped

    def write(self, kind: str, **values: Any) -> None:
        """Add a line, of `step` and whatever else."""
        if not self.enabled:
            return
        line = {"kind": kind, "time": round(time.time(), 3), **values}
        try:
            with open(self.file, "a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        except OSError as error:  # of a write it does not know of which file
            raise OSError(error.errno, error.strerror, str(self.file)) from error
        self.step = values.pop("step")
        group = values.pop("part", kind)
        self.tell({k if k in PLACES else f"{group}/{k}": v for k, v in values.items()})

    def tell(self, values: Mapping[str, Any]) -> None:
        """Hand the numbers among `values` to the trackers alone."""
        numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
        for tracker in self.trackers:
            tracker.log(self.step, numbers)

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """End the trackers, with scores and pictures where a training came to its `result`."""
        atexit.unregister(self.close)
        if result:
            name = "test_optimistic" if result.get("caution") else "test"
            self.tell({f"{name}/{lev}/{k}": v for lev in LEVELS for k, v in result[lev].items()})
            for tracker, file in product(self.trackers, sorted(self.file.parent.glob("*.png"))):
                tracker.image(file.stem, file)
        close_all(self.trackers, whole=result is not None)
        self.trackers = []


def keeps(line: str, resume_step: int) -> bool:
    """Whether a line tells of a step before `resume_step`; a torn last line does not."""
    try:
        return json.loads(line)["step"] <= resume_step
    except (ValueError, KeyError):
        return False


def open_run(config: Config, world: World) -> Path:
    """Make the run's folder, or find it again, and write down what runs in it."""
    folder = config.folder()
    if world.is_main:
        check_trackers(config.track)
        check_hub(config.hub, config.train.keep_epochs)
        folder.mkdir(parents=True, exist_ok=True)
        if config.train.resume == "never":
            forget(folder)
        write_atomic(
            folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False).encode()
        )
        write_environment(folder, world)
    return folder


def forget(folder: Path) -> None:
    """Remove what an earlier training left, so that this one starts over."""
    for name in ("checkpoints", "tensorboard", EPOCHS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "scores.json", "best.safetensors", ID_FILE):
        (folder / name).unlink(missing_ok=True)


def finished(folder: Path, target: int) -> dict[str, Any] | None:
    """The scores of a run trained to step `target`, or stopped early, and scored; else None."""
    try:
        result = json.loads((folder / "scores.json").read_text())
    except (OSError, ValueError):
        return None
    return result if result["steps"] >= target or result["stopped"] else None


def plain(result: dict[str, Any]) -> dict[str, float]:
    """The single numbers of a result, without per-class lists."""
    return {name: value for name, value in result.items() if isinstance(value, float)}


def announce(
    config: Config,
    world: World,
    shard_set: ShardSet,
    parts: dict[str, Selection],
    plan: BatchPlan,
    step: int,
    target: int,
) -> None:
    """Say what was understood, before the first step."""
    optim, epochs = config.optim, config.train.epochs
    if optim.warmup_epochs > epochs and optim.schedule != "onecycle":
        log.warning("optim.warmup_epochs=%g is longer than train.epochs=%d: the rate never reaches "
                    "optim.lr", optim.warmup_epochs, epochs)  # fmt: skip
    sizes = ", ".join(f"{len(numbers)} {name}" for name, numbers in parts.items() if len(numbers))
    log.info(
        "%s: %s on %s, %d classes, samples %s; batch %d = %d process(es) x %d x %d; %s",
        config.folder(), config.model.name, shard_set, len(shard_set.class_names), sizes,
        plan.batch_size, world.size, plan.accumulation, plan.microbatch,
        f"goes on after step {step} of {target}" if step else f"{target} steps",
    )  # fmt: skip


def write_model(
    folder: Path, config: Config, shard_set: ShardSet, mean: np.ndarray, std: np.ndarray
) -> None:
    """model.json: all that inference needs beside best.safetensors."""
    info = {
        "wavefold": shards.__version__,
        "model": dataclasses.asdict(config.model),
        "link": link_of(config, shard_set),
        "classes": shard_set.class_names,
        "shape": list(shard_set.shape),
        "mel": shard_set.info["mel"],
        "segment": shard_set.info["segment"],
        "normalisation": {
            "by": config.data.normalize,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "top_db": config.data.top_db,
        },
        "windows": {"count": config.data.crops, "frames": config.augment.crop_frames},
    }
    write_atomic(folder / "model.json", (json.dumps(info, indent=2) + "\n").encode())


def header(
    config: Config,
    shard_set: ShardSet,
    world: World,
    chosen: dict[str, Any],
    state: dict[str, Any],
    stopped: dict[str, Any] | None,
) -> dict[str, Any]:
    """What scores.json says of how its numbers came about."""
    fold = None if config.data.protocol == "split" else shard_set.folds[config.data.fold]
    return {
        "protocol": config.data.protocol,
        "caution": CAUTION.get(config.data.protocol),
        "part": "test",
        "fold": fold,
        "folds": shard_set.folds,
        "step": chosen["step"],
        "epoch": chosen["epoch"],
        "steps": state["step"],
        "stopped": stopped,
        "seconds": state["seconds"],
        "world_size": world.size,
    }


def tell_epoch(
    now: dict[str, Any],
    train: TrainConfig,
    loss: float,
    result: dict[str, Any],
    stopped: dict[str, Any] | None,
) -> None:
    """The line an epoch; `result` are the scores of the validation part, if there is one."""
    line = f"epoch {now['epoch']}/{train.epochs}  step {now['step']}  loss {loss:.4f}"
    line += f"  val {train.best_metric} {result[train.best_metric]:.4f}" if result else ""
    log.info("%s  %.0f s", line, now["seconds"])
    if stopped:
        log.info("stopped early: %s", stopped["why"])


def closing(folder: Path, result: dict[str, Any]) -> str:
    """The last line of a training."""
    part = result["recording"]
    accuracy, macro_f1 = part["accuracy"], part["macro_f1"]
    line = f"{folder}: accuracy {accuracy:.4f}, macro F1 {macro_f1:.4f} over recordings"
    eer = part.get("eer")
    line += f", EER {eer:.4f}" if eer is not None else ""
    tags = part["average_precision"] if "class_average_precision" in part else None
    line += f", mAP {tags:.4f}" if tags is not None else ""
    return f"{line}; {result['caution']}" if result["caution"] else line

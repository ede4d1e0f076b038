"""A run claimed by a training: nobody else is at it, and its configuration is what it was."""

import dataclasses
from pathlib import Path
from typing import Any

from shards.errors import UserError
from toolkit import lock
from toolkit.data import sources
from toolkit.results import read_config
from toolkit.schema import Config, get
from toolkit.world import World

#: What a second start may change of a run without changing its training.
FREE = {
    "data.fold", "data.stage", "data.threads", "data.check", "data.resident", "data.cache_gb",
    "train.microbatch", "train.log_every", "train.save_every", "train.keep_last",
    "train.save_minutes", "train.keep_best", "train.resume", "train.threads", "train.max_steps",
    "train.compile", "train.channels_last", "train.tf32", "train.cudnn_benchmark",
    "run.dir", "run.part", "train.timeout", "train.nonfinite_patience", "train.overfit_batch",
    "train.profile", "train.keep_epochs", "optim.fused",
}  # fmt: skip
#: And of a run with train.exact its last bits.
KERNELS = {f"train.{key}" for key in ("microbatch", "threads", "compile", "channels_last", "tf32")}
KERNELS |= {"optim.fused"}


def claim(config: Config, world: World) -> Path:
    """`take` by rank 0; what it raises is raised on all ranks."""
    from accelerate.utils import broadcast_object_list

    refusal = None
    if world.is_main:
        try:
            take(config)
        except UserError as error:
            refusal = str(error)
    refusal = broadcast_object_list([refusal])[0]
    if refusal:
        raise UserError(refusal)
    return config.folder()


def take(config: Config) -> None:
    """The run's folder for this process alone; before anything is read, or written there.

    Raises:
        UserError: another training is at it, it or another fold of it was begun with another
            configuration, or it has to be there and is not.
    """
    folder = config.folder()
    check_begun(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock.hold(folder)
    check_begun(config, folder)  # by another start, just now


def check_begun(config: Config, folder: Path) -> None:
    """Raise a UserError unless what was begun in `folder`, or as another fold of it, goes on."""
    known = folder / "config.yaml"
    if config.train.resume == "never":
        return
    if config.train.resume == "must" and not known.exists():
        raise UserError(
            f"train.resume=must: there is no run in {folder}; start it with --train.resume=auto"
        )
    beside = config.data.protocol != "split" and not known.exists()
    others = sorted(folder.parent.glob("fold-*/config.yaml")) if beside else []
    for file in [known] if known.exists() else others[:1]:
        check_same(config, read_config(file), file.parent)


def check_same(config: Config, stored: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raise a UserError unless the stored configuration trains the same thing."""
    asking = [(s, key) for s, keys in config.to_dict().items() for key in keys]
    free = FREE - KERNELS if config.train.exact else FREE
    differing = []
    for section, key in asking:
        name = f"{section}.{key}"
        there, asked = stored.get(section, {}).get(key, default(config, name)), get(config, name)
        if name == "data.shards" and there is not None:  # a set may be moved, its weight may not
            there, asked = ((len(paths), w) for paths, w in map(sources, (there, asked)))
        if there != asked and name not in free and section not in ("track", "report", "hub"):
            differing.append(f"{name}: {there} there, {asked} asked")
    if differing:
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}); "
            "give it another --run.name, or start over with --train.resume=never"
        )


def default(config: Config, name: str) -> Any:
    """The value of `section.key` where none is given: of one that a stored config is older than."""
    section, key = name.split(".")
    (field,) = (f for f in dataclasses.fields(getattr(config, section)) if f.name == key)
    return None if field.default is dataclasses.MISSING else field.default

"""The trainings that make up a run: folds x seeds x a grid of settings, a task each."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import NamedTuple

from shards.errors import UserError
from shards.order import plan_batch
from toolkit.claim import check_begun
from toolkit.config import load
from toolkit.data import Data, open_parts
from toolkit.schema import Config

Axis = tuple[str, list[str]]  #: a setting, `section.key`, and its values as they were typed
#: What a grid may not change, and what does.
TAKEN = {
    "data.fold": "--folds", "train.seed": "--seeds", "run.part": "the grid itself",
    **dict.fromkeys(("run.name", "run.dir", "data.protocol"), "the config"),
}  # fmt: skip


class Task(NamedTuple):
    """One training of a run."""

    name: str  #: of its folder below the run's, GRID/seed-S/fold-F as far as there is such a part
    words: tuple[str, ...]  #: `--section.key=value`, what it sets beside the config


def tasks(folds: str | None, seeds: str | None, grid: Sequence[str] = ()) -> list[Task]:
    """Every combination, folds within seeds within settings.

    `folds` and `seeds` are a count, `5`, or a list, `0,2` (`3,` for number 3 alone); each of `grid`
    is `section.key=value,value`.

    Raises:
        UserError: a word that is no such list, a setting that is swept twice or by another flag.
    """
    axes = [parse_axis(text) for text in grid]
    names = axis_names([key for key, _ in axes])
    found = []
    for values in product(*(values for _, values in axes)):
        differing = [f"{names[key]}={safe(value)}"
                     for (key, several), value in zip(axes, values, strict=True)
                     if len(several) > 1]  # fmt: skip
        settings = [f"--{key}={value}" for (key, _), value in zip(axes, values, strict=True)]
        for seed, fold in product(parse_numbers("seeds", seeds), parse_numbers("folds", folds)):
            outer = [",".join(differing)] if differing else []
            outer += [] if seed is None else [f"seed-{seed}"]
            words = list(settings)
            words += [] if seed is None else [f"--train.seed={seed}"]
            words += [f"--run.part={'/'.join(outer)}"] if outer else []
            words += [] if fold is None else [f"--data.fold={fold}"]
            inner = [] if fold is None else [f"fold-{fold}"]
            found.append(Task("/".join(outer + inner), tuple(words)))
    twice = [name for name, count in Counter(task.name for task in found).items() if count > 1]
    if twice:
        raise UserError(
            f"two tasks would share the folder {twice[0]}; give each value of --grid once"
        )
    return found


def plan(
    words: Sequence[str], folds: str | None, seeds: str | None, grid: Sequence[str] = ()
) -> list[tuple[Task, Config]]:
    """The tasks of a config, `words` as train.py takes them, each with its checked configuration.

    Raises:
        UserError: also what any of the configurations is refused for.
    """
    config = load(words)
    kfold = config.data.protocol != "split"
    if folds is not None and not kfold:
        raise UserError(
            f"--folds={folds}: data.protocol=split has no folds; leave --folds out, or "
            "train with --data.protocol=kfold"
        )
    if folds is None and kfold:
        raise UserError(f"data.protocol={config.data.protocol}: say which folds, as in --folds=5")
    planned = [(task, load([*words, *task.words])) for task in tasks(folds, seeds, grid)]
    known: dict[str, str] = {}  # 1e-3 and 0.001 have two names and are one training
    for task, one in planned:
        assert one.folder() == Path(config.run.dir, config.run.name, task.name), task
        same = known.setdefault(repr(replace(one, run=config.run)), task.name)
        if same != task.name:
            raise UserError(f"{same} and {task.name} are the same; give each value of --grid once")
    return planned


def check_plan(configs: Sequence[Config], processes: int = 1) -> None:
    """Raise a UserError for what any of these trainings, on so many processes each, would be
    refused for by itself: its data, model, loss or batches. Before anything trains."""
    from toolkit import forest, history

    known = set()
    for config in configs:
        check_begun(config, config.folder())
        alike = replace(config, run=configs[0].run, train=replace(config.train, seed=0))
        if repr(alike) not in known:
            data = open_parts(replace(alike, data=replace(alike.data, stage=None)))
            history.check(config, data.shard_set, data.parts["val"])
            if config.model.name == "forest":
                forest.settings(config)
            elif find_spec("torch"):  # not where only the nodes have it
                check_model(config, data, processes)
        known.add(repr(alike))


def check_model(config: Config, data: Data, processes: int) -> None:
    """Raise a UserError where a model, which takes no memory here, cannot be had or trained so."""
    import torch

    from toolkit import models
    from toolkit.losses import make_loss
    from toolkit.models.transfer import find_weights, freeze

    shape, train = config.input_shape(data.shard_set.shape), config.train
    plan_batch(train.batch_size, train.microbatch, processes, config.model.norm_batch)
    make_loss(config, data.shard_set, data.parts)
    with torch.device("meta"):
        fresh = replace(config.model, pretrained=False)
        model = models.build(fresh, len(data.shard_set.class_names), shape)
    if config.model.init_from:
        from toolkit.checkpoint import resumes

        if not resumes(config.folder(), train.resume):
            find_weights(Path(config.model.init_from))
    if config.model.freeze:
        freeze(model, config.model.freeze)


def parse_numbers(flag: str, text: str | None) -> list[int | None]:
    """`5` as 0 to 4, `0,2` and `3,` as they stand; [None] where the flag was not given."""
    if text is None:
        return [None]
    words = text.split(",")
    words = words[:-1] if len(words) > 1 and not words[-1] else words
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--{flag}={text}: expected a count, as 5, or a list, as 0,2 or 3,")
    numbers = [int(word) for word in words]
    if "," not in text:
        numbers = list(range(numbers[0]))
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"--{flag}={text}: at least one, and each once")
    return list(numbers)


def parse_axis(text: str) -> Axis:
    """`optim.lr=1e-3,3e-4` as the setting and its values; commas inside brackets part nothing."""
    key, equals, values = text.partition("=")
    several = [v.strip() for v in re.findall(r"(?:\[[^]]*\]|\{[^}]*\}|[^,])+", values)]
    if not (equals and re.fullmatch(r"\w+\.\w+", key) and several):
        raise UserError(f"--grid {text!r}: expected section.key=value,value, as optim.lr=1e-3,3e-4")
    if key in TAKEN:
        raise UserError(f"--grid {text!r}: {key} is for {TAKEN[key]} to say")
    return key, several


def axis_names(keys: Sequence[str]) -> dict[str, str]:
    """A short name for each setting, unlike all others: its key; `model` stands for model.name."""
    if len(set(keys)) < len(keys):
        raise UserError(f"--grid: {Counter(keys).most_common(1)[0][0]} is given twice; join them")
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    count = Counter(short.values())
    return {key: key if count[name] > 1 else name for key, name in short.items()}


def safe(value: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", value, flags=re.ASCII).strip("-") or "none"

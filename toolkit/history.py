"""The history of the validation part's scores, and what it decides: best epoch, plateau, end.

All of it is a pure function of the history, which checkpoints hold: a training that was killed
decides as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import UserError
from shards.index import ShardSet
from shards.selection import Selection
from toolkit.metrics import SIGNS
from toolkit.predictions import truth
from toolkit.schema import Config, OptimConfig, TrainConfig
from toolkit.validation import check_report

if TYPE_CHECKING:  # a forest needs no torch
    import torch

Entries = list[dict[str, Any]]  #: one an epoch: step, epoch, and the metrics that decide


class History:
    """What was evaluated, and what follows: `best` entry, where and why `stopped`, `drops`."""

    def __init__(self, entries: Entries, config: Config):
        self.entries, self.config = entries, config
        self._decide()

    def add(self, result: Mapping[str, Any], step: int, epoch: int, device: torch.device) -> None:
        """Add the scores of an evaluation: those of rank 0, whatever the other ranks found."""
        import torch
        from accelerate.utils import broadcast

        names = list(metrics_of(self.config))
        mine = torch.tensor([result[name] for name in names], dtype=torch.float64, device=device)
        values = dict(zip(names, broadcast(mine).tolist(), strict=True))
        self.entries.append({"step": step, "epoch": epoch, **values})
        self._decide()

    def _decide(self) -> None:
        self.best = best(self.entries, self.config.train.best_metric)
        self.stopped = stopped(self.entries, self.config.train)
        self.drops = drops(self.entries, self.config.optim)


def metrics_of(config: Config) -> dict[str, str]:
    """The metrics that decide something, and the key that names each."""
    plateau = config.optim.schedule == "plateau"
    names = {config.optim.plateau_metric: "optim.plateau_metric"} if plateau else {}
    return {config.train.best_metric: "train.best_metric", **names}


def check(config: Config, shard_set: ShardSet, numbers: np.ndarray | Selection) -> None:
    """Whether the validation samples `numbers` (N,) can give what `config` decides by.

    Raises:
        UserError: no validation part where one is needed, or a metric is not defined on it.
    """
    check_report(config.report, shard_set)
    labels, classes = truth(shard_set, numbers[:]), len(shard_set.class_names)
    asking = {"optim.schedule=plateau": config.optim.schedule == "plateau"}
    asking[f"train.patience={config.train.patience}"] = config.train.patience > 0
    if not len(labels) and any(asking.values()):
        words = next(words for words, asked in asking.items() if asked)
        raise UserError(
            f"{words} needs a validation part, and data.protocol={config.data.protocol} has none "
            "here; use data.protocol=kfold_nested, or split with a set built with --split"
        )
    for metric, key in metrics_of(config).items() if len(labels) else ():
        several = labels.ndim == 2
        if metric in ("eer", "min_dcf") and (classes != 2 or several):
            there = f"{classes}{', several a sample' if several else ''}"
            raise UserError(f"{key}={metric}: for two classes, the shard set has {there}; "
                            "use roc_auc")  # fmt: skip
        if metric == "micro_f1" and not several:
            raise UserError(f"{key}=micro_f1: for several classes a sample; here it is accuracy")
        found = int(labels.any(0).sum()) if several else len(np.unique(labels))
        # Of several classes those count that some samples have and others lack.
        enough = (labels.any(0) & ~labels.all(0)).any() if several else 1 < classes == found
        if metric in ("roc_auc", "average_precision", "eer", "min_dcf") and not enough:
            raise UserError(
                f"{key}={metric}: not defined, the validation part has {found} of "
                f"{classes} classes; use balanced_accuracy or another split"
            )


def best(entries: Entries, metric: str) -> dict[str, Any] | None:
    """The entry with the best value, the first of equals; None where nothing was evaluated."""
    return max(entries, key=lambda entry: SIGNS[metric] * entry[metric], default=None)


def stopped(entries: Entries, train: TrainConfig) -> dict[str, Any] | None:
    """Where and why early stopping ends the training, or None if it goes on."""
    found = best(entries, train.best_metric)
    since = len(entries) - 1 - entries.index(found) if found else 0
    if not found or not train.patience or since < train.patience:
        return None
    last, metric = entries[-1], train.best_metric
    why = (
        f"validation {metric} was no better than {found[metric]:.4g}, that of epoch "
        f"{found['epoch']}, for {since} evaluations"
    )
    return {"step": last["step"], "epoch": last["epoch"], "why": why}


def drops(entries: Entries, config: OptimConfig) -> int:
    """How often the plateau's rule, that of torch's ReduceLROnPlateau, has lowered the rate."""
    if config.schedule != "plateau":
        return 0
    sign, metric = SIGNS[config.plateau_metric], config.plateau_metric
    record, bad, cooling, count = -sign * float("inf"), 0, 0, 0
    for value in (entry[metric] for entry in entries):
        better = sign * value > sign * record * (1.0 + sign * config.plateau_threshold)
        record, bad = (value, 0) if better else (record, bad + 1)
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > config.plateau_patience:
            count, cooling, bad = count + 1, config.plateau_cooldown, 0
    return count

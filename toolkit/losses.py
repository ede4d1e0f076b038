"""What a training minimises, and what the logits then say. `B` samples, `K` classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from shards.errors import UserError
from shards.index import ShardSet
from shards.selection import Selection
from toolkit.data import by_class, link_of
from toolkit.schema import Config, OptimConfig


@dataclass(frozen=True)
class Loss:
    """The mean loss of a microbatch, in float32, of class numbers (B,) or shares of classes (B, K).

    Means are over samples, whatever their weights, so that microbatches can be averaged. Logits
    (B, 1), a model with one score, are those of two classes, the first of them at 0: its cross
    entropy is the binary one of the score.
    """

    binary: bool = False  #: each class for itself, as where samples have several
    gamma: float = 0.0  #: right with probability p counts (1-p)^gamma: Lin et al., ICCV 2017
    smoothing: float = 0.0  #: share of the target that all classes have alike
    weights: tuple[float, ...] | None = None  #: (K,): of a class; if `binary` of its presence
    link: str = "softmax"  #: how `log_probabilities` reads the logits

    def __call__(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = two_sided(logits.float())
        weights = None if self.weights is None else logits.new_tensor(self.weights)
        if not (self.binary or self.gamma):
            how = "mean" if weights is None else "none"
            each = F.cross_entropy(
                logits, y, weight=weights, reduction=how, label_smoothing=self.smoothing
            )
            return each if weights is None else each.mean()
        classes = logits.shape[1]
        y = y.float() if y.ndim == 2 else F.one_hot(y, classes).float()
        y = y * (1 - self.smoothing) + self.smoothing / (2 if self.binary else classes)
        if self.binary:
            present = y * F.logsigmoid(logits) * torch.sigmoid(-logits) ** self.gamma
            absent = (1 - y) * F.logsigmoid(-logits) * torch.sigmoid(logits) ** self.gamma
            return -((present if weights is None else present * weights) + absent).mean()
        logs = F.log_softmax(logits, dim=1)
        each = y * logs * (1 - logs.exp()) ** self.gamma
        return -(each if weights is None else each * weights).sum(1).mean()


def two_sided(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, 1) as (B, 2), the first class at 0; others as they are."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def log_probabilities(logits: torch.Tensor, link: str) -> torch.Tensor:
    """What logits say: `softmax`; `sigmoid`, each class for itself; `shares`, these made to sum
    to 1. Shape: (B, K) or (B, 1) -> (B, K) float64, (B, 2) of one score."""
    logits = two_sided(logits.double())
    if link == "softmax":
        return F.log_softmax(logits, dim=1)
    found = F.logsigmoid(logits)
    return found if link == "sigmoid" else found - found.logsumexp(1, keepdim=True)


def make_loss(config: Config, shard_set: ShardSet, parts: Mapping[str, Selection]) -> Loss:
    """The loss that `config` asks for, with class weights of the training part.

    Raises:
        UserError: it does not fit the labels, or weights a class that is not there.
    """
    optim, multi = config.optim, shard_set.is_multi_label
    if multi and optim.loss == "cross_entropy":
        raise UserError(
            f"optim.loss=cross_entropy takes one class a sample, {shard_set} has several; "
            "use optim.loss=bce or focal"
        )
    binary = multi or (optim.loss == "bce" and config.model.outputs is None)
    gamma = optim.focal_gamma if optim.loss == "focal" else 0.0
    weights = class_weights(optim, shard_set, parts["train"], binary)
    return Loss(binary, gamma, optim.label_smoothing, weights, link_of(config, shard_set))


def class_weights(
    optim: OptimConfig, shard_set: ShardSet, train: Selection, binary: bool
) -> tuple[float, ...] | None:
    """A weight for each class. `balanced`: N / (K n) of its n samples, as in scikit-learn, or for
    each class by itself the samples without it over those with it."""
    asked, names = optim.class_weights, shard_set.class_names
    if isinstance(asked, Mapping):
        found = by_class("optim.class_weights", asked, names)
        if not found.any():
            raise UserError(f"optim.class_weights={asked}: nothing is learnt where all are 0")
        return tuple(found.tolist())
    if asked is None:
        return None
    if asked != "balanced":
        raise UserError(f"optim.class_weights={asked}: balanced, or a mapping {{class: times}}")
    n = np.zeros(len(names))
    for numbers in train.pieces():
        n += shard_set.targets(numbers).sum(0)
    have = np.maximum(n, 1)
    return tuple(((len(train) - n) / have if binary else len(train) / (len(names) * have)).tolist())

"""What the training and validation parts leave for the scores of the test part."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.command import nearest
from shards.errors import UserError
from shards.index import ShardSet
from shards.selection import Selection
from toolkit.attacks import attack_names
from toolkit.decision import decide, learn
from toolkit.detection import Costs
from toolkit.metrics import Scores, scores
from toolkit.predictions import of_samples, truth
from toolkit.schema import Config, ReportConfig

log = logging.getLogger(__name__)


def score(
    config: Config, shard_set: ShardSet, numbers: np.ndarray, log_probs: np.ndarray
) -> Scores:
    """`scores` of the samples `numbers` (N,), with the target and the costs of `config.report`.

    Where samples have several classes, at the thresholds that are best on these very samples, as
    they are chosen in the end: above one half there is nothing for epochs, and no F1 to choose by.
    """
    report, names, labels = config.report, shard_set.class_names, truth(shard_set, numbers)
    target, predicted = target_of(report, shard_set), None
    if shard_set.is_multi_label and report.threshold != "none":
        decision = learn(labels, log_probs, names, target, report.threshold)
        predicted = decide(log_probs, names, decision, multi_label=True)
    return scores(labels, log_probs, predicted, target=target, costs=costs_of(report))


def check_report(report: ReportConfig, shard_set: ShardSet) -> None:
    """Raise a UserError before the training where its scores could not be told as asked."""
    if len(shard_set.class_names) < 2:
        raise UserError(
            f"{shard_set}: {shard_set.class_names[0]} is its only class, and there is nothing to "
            "tell apart; build it with others, or name two or more in data.classes"
        )
    target_of(report, shard_set)
    if report.by is not None:
        attack_names(report.by, {"path": (), "attack": (), "group": ()})
        if len(shard_set.class_names) != 2 or shard_set.is_multi_label:
            raise UserError(f"report.by={report.by}: attacks are told where there are two classes")


def target_of(report: ReportConfig, shard_set: ShardSet) -> int:
    """The number of the class that two-class scores take for the target: the last one, unless
    `report.target` names another.

    Raises:
        UserError: there is no such class.
    """
    names = shard_set.class_names
    if report.target is not None and report.target not in names:
        raise UserError(f"report.target={report.target}: no such class; "
                        f"{nearest(report.target, names)}")  # fmt: skip
    return len(names) - 1 if report.target is None else names.index(report.target)


def costs_of(report: ReportConfig) -> Costs:
    """The costs of the detection cost function."""
    return Costs(report.dcf_prior, report.dcf_miss, report.dcf_false_alarm)


def judged(config: Config, shard_set: ShardSet, parts: Mapping[str, Selection]) -> list[str]:
    """The parts that the chosen weights are run over: the test part, and before it the validation
    part where that chooses thresholds."""
    chooses = shard_set.is_multi_label or len(shard_set.class_names) == 2
    chooses = chooses and config.report.threshold != "none" and len(parts["val"]) > 0
    return ["val", "test"] if chooses else ["test"]


def notes(
    config: Config,
    shard_set: ShardSet,
    parts: Mapping[str, Selection],
    found: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """What scores.json says beside the scores: `decision`, and of two classes `detection`, which
    has the target, the costs, and by what attacks are told, with those that training has heard.

    `found` has the log-probabilities of the validation part, if there is one.
    """
    report, several = config.report, shard_set.is_multi_label
    target, decision = target_of(report, shard_set), None
    if "val" in found and "val" in judged(config, shard_set, parts):
        rows = of_samples(shard_set, parts["val"][:], found["val"], None).at("recording")
        decision = learn(rows.labels, rows.log_probs, rows.classes, target, report.threshold)
    noted: dict[str, Any] = {"decision": decision}
    if len(shard_set.class_names) == 2 and not several:
        costs = costs_of(report)._asdict()
        name = shard_set.class_names[target]
        by = report.by
        if by == "attack" and not any(line.get("attack") for line in shard_set.recordings()):
            log.warning("report.by=attack: the shard set knows of none; give its table a column "
                        "attack, or build it with --attack_from=REGEX")  # fmt: skip
            by = None
        noted["detection"] = {"target": name, "costs": costs, "by": by}
        noted["detection"]["seen"] = seen(by, shard_set, parts["train"], target)
    return noted


def seen(by: str | None, shard_set: ShardSet, train: Selection, target: int) -> list[str]:
    """The attacks among the recordings of the training part."""
    if by is None:
        return []
    wanted: set[int] = set()
    for numbers in train.pieces():
        rows = shard_set.rows(numbers)
        wanted |= set(np.unique(rows["recording"][rows["label"] != target]).tolist())
    lines = shard_set.lines_of(wanted).values()
    told = {key: [line.get(key) or "" for line in lines] for key in ("path", "attack", "group")}
    return sorted(set(attack_names(by, told).tolist()))

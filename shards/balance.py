"""How much there is of each class in each part and fold: balance.json, and its tables.

Shapes: `K` classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.errors import UserError
from shards.index import SPLITS, ShardSet
from shards.labels import display_names, names

MEASURES = ("recordings", "groups", "segments", "seconds")
Line = dict[str, Any]  # of recordings.jsonl
Key = tuple[str | None, str, str | None]  # class (None: all of them), split, fold


@dataclass
class Amount:
    """How much there is of something."""

    recordings: int = 0
    groups: set[str] = field(default_factory=set)
    segments: int = 0
    seconds: float = 0.0

    def take(self, other: "Amount") -> None:
        """Add what `other` has; a group counts once."""
        self.recordings += other.recordings
        self.groups |= other.groups
        self.segments += other.segments
        self.seconds += other.seconds

    def told(self) -> dict[str, Any]:
        """The numbers by the names of MEASURES."""
        return {name: getattr(self, name) for name in MEASURES} | {"groups": len(self.groups)}


class Balance:
    """Amounts by class, part and fold, added up recording by recording.

    A recording of several classes counts in each of them, and once under the class None.
    """

    def __init__(self, classes: Sequence[str], folds: Sequence[str], lines: Iterable[Line] = ()):
        self.classes, self.folds = list(classes), list(folds)
        self.amounts: dict[Key, Amount] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Count a recording."""
        for name in (None, *names(line["label"])):
            amount = self.amounts.setdefault((name, line["split"], line["fold"]), Amount())
            amount.recordings += 1
            amount.groups.add(line["group"])
            amount.segments += line["segments"]
            amount.seconds += line["seconds"]

    def total(
        self, name: str | None = None, split: str | None = None, fold: str | None = None
    ) -> Amount:
        """What there is of a class (None: of all), in a part and a fold (None: in any)."""
        found = Amount()
        for s in SPLITS if split is None else [split]:
            for f in (*self.folds, None) if fold is None else (fold,):
                if amount := self.amounts.get((name, s, f)):
                    found.take(amount)
        return found

    def records(self) -> list[Line]:
        """One record for each class, part and fold that has anything, as in balance.json."""
        folds: list[str | None] = [*self.folds] or [None]
        keys = [(n, s, f) for n in self.classes for s in SPLITS for f in folds]
        return [
            {"class": name, "split": split, "fold": fold, **self.amounts[name, split, fold].told()}
            for name, split, fold in keys
            if (name, split, fold) in self.amounts
        ]

    def columns(self) -> dict[str, dict[str, str]]:
        """What the recordings are dealt into: `{"fold 1": {"fold": "1"}, ...}`, then the parts."""
        columns = {f"fold {fold}": {"fold": fold} for fold in self.folds}
        used = [part for part in SPLITS if any(split == part for _, split, _ in self.amounts)]
        if not columns or used != ["train"]:
            columns |= {part: {"split": part} for part in SPLITS}
        return columns


def table(shard_set: ShardSet, measure: str = "segments") -> list[str]:
    """Lines: how much of each class there is, in all and by fold and part.

    Raises:
        UserError: `measure` is none of MEASURES.
    """
    if measure not in MEASURES:
        raise UserError(f"--count={measure}: expected one of {', '.join(MEASURES)}")
    classes = shard_set.info["classes"]
    balance = Balance(classes, shard_set.folds, shard_set.recordings())
    columns = balance.columns()
    rows = [(measure, ["all", *columns])]
    shown = [*zip([*display_names(classes), "all"], [*classes, None], strict=True)]
    for title, name in shown:
        amounts = [balance.total(name, **column).told() for column in ({}, *columns.values())]
        rows.append((title, [f"{amount[measure]:.0f}" for amount in amounts]))
    wide = max(len(title) for title, _ in rows)
    cell = max(10, *(2 + len(name) for name in columns))
    return [f"{title:<{wide}}" + "".join(f"{x:>{cell}}" for x in cells) for title, cells in rows]

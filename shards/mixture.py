"""Several shard sets, or some classes of them, as one: nothing is copied.

Samples, shards and recordings are numbered through, the first set's first. Classes are those of
the first set where all have the same names; `classes` may name others, in the order wanted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards.command import nearest
from shards.condition import Conditioning
from shards.errors import UserError
from shards.index import ROW, ShardSet, stats_shape
from shards.labels import display_names

#: What decides the values of a sample, beside its mel settings.
_CONDITIONING = [field.name for field in fields(Conditioning) if field.name != "sample_rate"]


@dataclass(frozen=True)
class Mixture(ShardSet):
    """Shard sets seen as one; what `info` says of it is derived from theirs by `mix_sets`."""

    sources: tuple[ShardSet, ...]
    labels: tuple[np.ndarray, ...]  #: a source's label numbers to those of here; -1: left out

    @cached_property
    def ends(self) -> np.ndarray:
        """(sources,) how many samples there are up to each source's end."""
        return np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def index(self) -> np.ndarray:
        raise TypeError("a mixture has no index of its own; ask it for rows")

    @cached_property
    def shard_paths(self) -> list[Any]:
        return [path for source in self.sources for path in source.shard_paths]

    @cached_property
    def _offsets(self) -> np.ndarray:
        """(sources, 2) the first shard and the first recording of each source."""
        sizes = [(len(s.info["shards"]), s.info["recordings"]) for s in self.sources]
        return np.cumsum([(0, 0), *sizes[:-1]], axis=0)

    def source_of(self, numbers: np.ndarray) -> np.ndarray:
        """Which source each sample is of. Shape: (P,) -> (P,) int64."""
        return np.searchsorted(self.ends, numbers, "right")

    def rows(self, numbers: np.ndarray | slice) -> np.ndarray:
        """As one index would have them. Shape: (P,) -> (P,) of ROW."""
        if isinstance(numbers, slice):
            numbers = np.arange(*numbers.indices(len(self)))
        rows, of = np.empty(len(numbers), ROW), self.source_of(numbers)
        for i in np.unique(of).tolist():
            here = of == i
            rows[here] = self._rows_of(i, numbers[here] - (self.ends[i] - len(self.sources[i])))
        return rows

    def _rows_of(self, i: int, numbers: np.ndarray) -> np.ndarray:
        """Rows of source `i`, by its own numbers, as those of here."""
        rows = self.sources[i].rows(numbers)
        shard, recording = self._offsets[i].tolist()
        rows["shard"] += shard
        rows["recording"] += recording
        rows["label"] = self.labels[i][rows["label"]]
        if not self.folds:
            rows["fold"] = 0
        return rows

    def shard_source(self, shard: int) -> tuple[Any, int]:
        """The set that a shard is of, and its number there."""
        of = int(np.searchsorted(self._offsets[:, 0], shard, "right")) - 1
        return self.sources[of], shard - int(self._offsets[of, 0])

    def shard_place(self, shard: int) -> str:
        source, local = self.shard_source(shard)
        return source.shard_place(local)

    def shard_file(self, shard: int) -> Path:
        source, local = self.shard_source(shard)
        return source.shard_file(local)

    def cache_figures(self) -> dict[str, int]:
        return dict(sum((Counter(source.cache_figures()) for source in self.sources), Counter()))

    @property
    def open_at_most(self) -> int:
        return min(source.open_at_most for source in self.sources)

    @property
    def is_remote(self) -> bool:
        return any(source.is_remote for source in self.sources)

    def open_shard(self, shard: int) -> int:
        source, local = self.shard_source(shard)
        return source.open_shard(local)

    def bring(self, shard: int) -> Iterator[None]:
        source, local = self.shard_source(shard)
        return source.bring(local)

    @cached_property
    def stats(self) -> np.ndarray:
        """The sums of all sources, of the classes that take part."""
        n_mels = self.sources[0].stats.shape[-1]
        total = np.zeros(stats_shape(len(self.folds), len(self.info["classes"]), n_mels))
        for source, labels in zip(self.sources, self.labels, strict=True):
            stats = source.stats if self.folds else source.stats.sum(axis=1, keepdims=True)
            total[:, :, labels[labels >= 0]] += stats[:, :, labels >= 0]
        return total

    def recordings(self) -> Iterator[dict[str, Any]]:
        """Their lines, numbered through; with several sets, paths and groups begin with the set."""
        names = source_names(self.sources)
        for name, source in zip(names, self.sources, strict=True):
            for line in source.recordings():
                if len(names) > 1:
                    line |= {x: f"{name}/{line[x]}" for x in ("path", "group") if line.get(x)}
                yield line

    def lines_of(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        wanted = set(numbers)
        return {n: line for n, line in enumerate(self.recordings()) if n in wanted}


def group_names(shard_set: ShardSet) -> Iterator[str]:
    """Each recording's group, or its path, as its own set has it: where that lies is no matter."""
    for source in getattr(shard_set, "sources", (shard_set,)):
        for line in source.recordings():
            yield str(line.get("group") or line["path"])


def source_names(sources: Sequence[ShardSet]) -> list[str]:
    """The sets' folder names, numbered where they are not different."""
    names = [source.name for source in sources]
    many = [names.count(name) > 1 for name in names]
    numbered = [f"{name}-{i}" for i, name in enumerate(names, 1)]
    return [n if more else name for n, name, more in zip(numbered, names, many, strict=True)]


def mix_sets(
    sources: Sequence[ShardSet],
    classes: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Mixture:
    """Several sets as one, or only some classes, which then are numbered in the order given.

    Sets have to agree in mel settings, shape and conditioning, and in their classes (in any order)
    unless `classes` says which; a class may be missing from some sets, not from all. Where their
    folds differ there are none. `weights` are written down for whoever compares two runs.

    Raises:
        UserError: they do not agree, share samples, or there is no such class.
    """
    first = sources[0]
    for source in sources:
        if source.is_multi_label:
            raise UserError(f"{source}: samples have several classes; it cannot be mixed")
        check_agreement(first, source, need_classes=classes is None)
    check_apart(sources)
    names = list(first.info["classes"]) if classes is None else [
        find_class(name, sources) for name in classes
    ]  # fmt: skip
    number = {name: i for i, name in enumerate(names)}
    if len(number) < len(names):
        raise UserError(f"data.classes={list(classes or ())}: a class is named twice")
    if len(names) < 2:
        raise UserError(f"data.classes={list(classes or ())}: a classifier needs at least two")
    labels = [np.array([number.get(c, -1) for c in s.info["classes"]]) for s in sources]
    alike = all(source.folds == first.folds for source in sources)
    infos = [source.info for source in sources]
    split = {
        key: next((i["split"][key] for i in infos if i["split"][key] is not None), None)
        for key in ("parts", "split_from")
    }
    info = {
        **first.info,
        "classes": names,
        "folds": first.folds if alike else [],
        "split": {**first.info["split"], **split},
        "samples": sum(len(source) for source in sources),
        "recordings": sum(i["recordings"] for i in infos),
        "shards": [shard for i in infos for shard in i["shards"]],
        "sets": source_names(sources),
        "weights": None if weights is None else list(weights),
    }
    path = Path(" + ".join(str(source) for source in sources))
    return Mixture(path, info, tuple(sources), tuple(labels))


def check_agreement(first: ShardSet, other: ShardSet, need_classes: bool) -> None:
    """Raise a UserError unless samples of both mean the same."""
    here, there = decisive(first.info), decisive(other.info)
    differing = [f"{x}: {here[x]} and {there.get(x)}" for x in here if here[x] != there.get(x)]
    if differing:
        raise UserError(
            f"{first} and {other} differ ({'; '.join(differing)}); "
            "build both with the same settings"
        )
    odd = sorted(set(first.info["classes"]) ^ set(other.info["classes"]))
    if need_classes and odd:
        raise UserError(
            f"{first} and {other} differ in their classes ({', '.join(odd)}); "
            "name those to train on by data.classes"
        )


def check_apart(sources: Sequence[ShardSet]) -> None:
    """Raise a UserError if two sets hold the same shard: a sample must be scored once only."""
    seen: dict[str, tuple[int, str]] = {}
    for i, source in enumerate(sources):
        for shard in source.info["shards"]:
            there, name = seen.setdefault(shard["sha256"], (i, shard["name"]))
            if there != i:
                raise UserError(
                    f"data.shards: {sources[there]} and {source} hold the same samples ({name}), "
                    "which would be scored twice; name a set once, its weight says how often it is "
                    "drawn"
                )


def decisive(info: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a sample's values are."""
    settings = info.get("settings", {})
    conditioning = {name: settings.get(name) for name in _CONDITIONING}
    return {**info["mel"], **conditioning, "shape": info["shape"], "dtype": info["dtype"]}


def find_class(name: str, sources: Sequence[ShardSet]) -> str:
    """A class as dataset.json names it, by that name or by the one that reports show."""
    known: dict[str, str] = {}
    for source in sources:
        stored = source.info["classes"]
        known |= dict(zip(display_names(stored), stored, strict=True))
        known |= dict(zip(stored, stored, strict=True))
    if name not in known:
        raise UserError(f"data.classes: no class {name!r}; {nearest(name, list(known))}")
    return known[name]

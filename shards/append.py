"""New recordings for a finished shard set: what is new, and where it goes beside what is there.

What is there keeps its place: numbers of classes, folds and shards stand in bytes that stay.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.index import SPLITS, ShardSet, current
from shards.labels import classes_of
from shards.manifest import Scan
from shards.notes import Notes
from shards.recording import Recording, Reject, place

SAME = ("label", "group", "seconds", "sample_rate", "channels")
SHOWN = 3  # names in a message

Line = dict[str, Any]
Key = tuple[str, float, float | None]  # path, start and end; no end of a whole file


def only_new(base: ShardSet, found: Scan, settings: Mapping[str, Any]) -> Scan:
    """The recordings of a scan that the set has never seen, each with its fold and part.

    A file of recordings.jsonl or rejected.csv is not new, whatever became of it since: one that was
    mended needs a new name. A group that is there already stays where it is; new groups, large ones
    first, go where they bring the classes nearest to their shares.

    Raises:
        UserError: a recording gone or changed, a new class or fold, a group in two folds.
    """
    lines = {
        (line["path"], line.get("start", 0.0), line.get("end")): line for line in base.recordings()
    }
    reasons: dict[str, list[str]] = defaultdict(list)
    for reject in rejected(base):
        reasons[reject.path].append(reject.reason)
    check_kept(base, lines, found)
    recordings = [
        r for r in found.recordings if key(r) not in lines and not was_rejected(r, reasons)
    ]
    known = base.info["classes"]
    labels = [x for x in classes_of(r.label for r in recordings) if x not in known]
    if labels:
        raise UserError(
            f"{base.path}: {said(labels)}: a new class would renumber those in the shards; build "
            "the whole set anew, with --overwrite or into another folder"
        )
    shares = settings["split"] or [1.0]
    parts = {name: share for name, share in zip(SPLITS, shares, strict=False) if share > 0}
    folds = {name: 1 / len(base.folds) for name in base.folds}
    seed, old = settings["seed"], list(lines.values())
    fold = homes("fold", folds, old, recordings, seed) if folds else {}
    split = homes("split", parts, old, recordings, seed)
    return Scan(
        [r._replace(fold=fold.get(r.group), split=split[r.group]) for r in recordings],
        [x for x in found.rejected if not is_listed(x.reason, reasons[printed(x.path)])],
        found.passed_by,
    )


def old_notes(base: ShardSet) -> list[Notes]:
    """The notes of a set's shards, as far as they tell of the whole set together: what is not known
    shard by shard, sums and rejected files, stands in the first."""
    lines = base.file("recordings.jsonl").read_text(encoding="utf-8").splitlines()
    shards = np.array(base.index["shard"])
    ends = np.searchsorted(shards, np.arange(len(base.info["shards"])), "right")
    notes, first, seen = [], 0, 0
    for entry, end in zip(base.info["shards"], ends.tolist(), strict=True):
        rows = np.array(base.index[first:end])
        upto = int(rows["recording"][-1]) + 1 if len(rows) else seen
        rows["recording"] -= seen
        notes.append(Notes(rows, lines[seen:upto], [], {}, entry["bytes"], entry["sha256"]))
        first, seen = end, upto
    cells = np.argwhere(base.stats[..., 0, 0]).tolist()
    notes[0].sums.update({(s, f, c): base.stats[s, f, c] for s, f, c in cells})
    notes[0].rejected.extend(rejected(base))
    return notes


def rejected(base: ShardSet) -> list[Reject]:
    """The lines of rejected.csv."""
    with open(current(base.path, "rejected.csv"), encoding="utf-8", newline="") as table:
        return [Reject(*row) for row in list(csv.reader(table))[1:]]


def printed(path: str) -> str:
    """A path as rejected.csv spells it, where a name need not be valid text."""
    return path.encode("utf-8", "backslashreplace").decode()


def said(names: Sequence[str]) -> str:
    """The first names and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def is_listed(reason: str, reasons: Sequence[str]) -> bool:
    """Whether a file or a piece of one, rejected now, stands among the reasons for its path."""
    return reason in reasons or any("(from " not in x for x in reasons)


def was_rejected(recording: Recording, reasons: Mapping[str, Sequence[str]]) -> bool:
    """Whether a recording, or the piece of a file that it is, stands in rejected.csv."""
    mine = f"(from {recording.start:.10g} s,"
    return any(mine in x or "(from " not in x for x in reasons.get(recording.path, ()))


def key(r: Recording) -> Key:
    """What tells a recording, or a piece of one, from all others, as its line has it."""
    return r.path, r.start, None if r.piece.is_whole else r.start + r.seconds


def check_kept(base: ShardSet, lines: Mapping[Key, Line], found: Scan) -> None:
    """Raise a UserError that names the recordings of the set that are gone or changed."""
    now = {key(r): r for r in found.recordings}
    gone = [piece[0] for piece in lines if piece not in now]
    changed = [piece[0] for piece in lines if piece in now and differs(now[piece], lines[piece])]
    for names, what in ((gone, "gone or unreadable"), (changed, "no longer what they were")):
        if names:
            raise UserError(
                f"{base.path}: recordings of it are {what}: {said(names)}; put them back, or build "
                "the whole set anew with --overwrite"
            )


def differs(recording: Recording, line: Line) -> bool:
    """Whether a recording is told differently from its line; folds and parts only if given."""
    told = [name for name in ("fold", "split") if getattr(recording, name) is not None]
    return any(getattr(recording, name) != line[name] for name in (*SAME, *told))


def homes(
    kind: str,
    shares: Mapping[str, float],
    lines: Sequence[Line],
    recordings: Sequence[Recording],
    seed: int,
) -> dict[str, str]:
    """The fold (or part: `kind`) of each group, old and new; `shares` add up to 1.

    Raises:
        UserError: a fold that the set does not have, or a group in two.
    """
    home: dict[str, str] = {line["group"]: line[kind] for line in lines}
    held = Counter((line[kind], line["label"]) for line in lines)
    total = Counter(line["label"] for line in lines) + Counter(r.label for r in recordings)
    fresh: dict[str, list[Recording]] = defaultdict(list)
    for r in recordings:
        told = getattr(r, kind)
        if told is not None and told not in (SPLITS if kind == "split" else shares):
            names = ", ".join(shares)
            raise UserError(f"--append: {r.path!r} is in {kind} {told!r}, the set has {names}")
        if told is not None and home.setdefault(r.group, told) != told:
            raise UserError(
                f"--append: group {r.group!r} is in {kind} {home[r.group]!r} and, with {r.path!r}, "
                f"in {told!r}; a group has to stay on one side, so move it there"
            )
        if r.group in home:
            held[home[r.group], r.label] += 1
        else:
            fresh[r.group].append(r)

    def cost(name: str, counts: Counter[str]) -> float:
        """By how much a group moves the squared distance of the classes from their shares."""
        return sum(
            n * (n + 2 * (held[name, label] - shares[name] * total[label]))
            / (shares[name] * total[label] ** 2)
            for label, n in counts.items()
        )  # fmt: skip

    order = sorted(
        fresh, key=lambda g: (-len(fresh[g]), min(place(r.path, seed) for r in fresh[g]))
    )
    for group in order:
        counts = Counter(r.label for r in fresh[group])
        home[group] = min(shares, key=lambda name: cost(name, counts))
        held.update({(home[group], label): n for label, n in counts.items()})
    return home

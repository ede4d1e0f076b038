"""Two classes scored for each attack: every way of faking against all that is genuine."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.errors import UserError
from toolkit import detection
from toolkit.intervals import RESAMPLES, averaged, percentiles, ranked, units_of
from toolkit.metrics import resampled
from toolkit.predictions import Predictions


def attack_names(by: str, rows: Mapping[str, Sequence[str]]) -> np.ndarray:
    """What each recording was made by: its `attack` or `group` (`by` is that word), or what the
    regular expression `by` finds in its path, the first parenthesis if there is one; "other" where
    that says nothing. `rows` has path, attack and group of each, (N,).

    Raises:
        UserError: no regular expression.
    """
    if by in ("attack", "group"):
        return np.array([name or "other" for name in rows[by]], object)
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise UserError(f"report.by={by}: no regular expression ({error}); or say attack") from None
    found = [pattern.search(path) for path in rows["path"]]
    names = [(m[1] if pattern.groups else m[0]) or "other" if m else "other" for m in found]
    return np.array(names, object)


def told(rows: Predictions) -> dict[str, Sequence[str]]:
    """What `attack_names` asks."""
    found = {"path": rows.recording, "attack": rows.attack, "group": rows.group}
    return {name: values.tolist() for name, values in found.items()}


def summary(
    seeds: Sequence[Predictions], notes: Mapping[str, Mapping[str, Any]], unit: str
) -> dict[str, Any] | None:
    """Target, costs, and a row each of all, of seen and unseen attacks, and of every attack.

    `seeds` are what trainings said of the same recordings of two classes, in one order, `notes`
    what scores.json notes as `detection` for each fold by name. A row has n, eer and min_dcf,
    means over the seeds, with their intervals, and whether training has heard of the attack: True,
    False, or None where folds differ. None where a run has noted nothing.
    """
    noted = next(iter(notes.values()), None)
    if not noted:
        return None
    rows = seeds[0]
    target = rows.labels == rows.classes.index(noted["target"])

    def row(name: str, others: np.ndarray) -> dict[str, Any]:
        """The scores of the target against `others` (N,) bool, and their bootstrap intervals."""
        kept = [one.take(target | others) for one in seeds]
        units, score = units_of(kept[0], unit), averaged([ranked(one, noted) for one in kept])
        once = score(np.ones((1, len(units))))
        drawn = resampled(lambda drawn: score(drawn[:, units]), units, RESAMPLES)
        between = {key: percentiles(values, units) for key, values in drawn.items()}
        single = {key: None if np.isnan(v[0]) else float(v[0]) for key, v in once.items()}
        return {"name": name, "n": int(others.sum()), **single, "interval": between}

    found = [row("all", ~target)]
    if noted["by"]:
        names = attack_names(noted["by"], told(rows))
        known = np.array([n in notes[f]["seen"] for n, f in zip(names, rows.fold, strict=True)])
        for name, here in (("seen attacks", known), ("unseen attacks", ~known)):
            if (here & ~target).any():
                found.append(row(name, here & ~target))
        for name in sorted(set(names[~target])):
            here = (names == name) & ~target
            heard = set(known[here].tolist())
            found.append(row(name, here) | {"seen": heard.pop() if len(heard) == 1 else None})
    return {"target": noted["target"], "costs": noted["costs"], "by": noted["by"], "rows": found}


def curves(
    rows: Predictions, found: Mapping[str, Any]
) -> Sequence[tuple[str, detection.Curve, float, float]]:
    """Of all, and of seen and unseen attacks where both are there: name, curve, EER, min-DCF."""
    number, logs = rows.classes.index(found["target"]), rows.log_probs
    target, score = rows.labels == number, logs[:, number] - logs[:, 1 - number]
    scored = {row["name"]: row for row in found["rows"]}
    kept = {"all": np.ones(len(target), bool)}
    heard = {row.get("seen") for row in scored.values()}
    if {True, False} <= heard:
        names = attack_names(found["by"], told(rows))
        for title, flag in (("seen attacks", True), ("unseen attacks", False)):
            some = [name for name, row in scored.items() if row.get("seen") is flag]
            kept[title] = target | np.isin(names, some)
    return [
        (name, detection.curve(target[k], score[k]), scored[name]["eer"], scored[name]["min_dcf"])
        for name, k in kept.items()
    ]

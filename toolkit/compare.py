"""Two runs on the same recordings: how far apart, and whether that could be chance.

`N` recordings, `R` resamples of them; differences are the second run's score less the first's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.errors import UserError
from shards.index import write_atomic
from toolkit import detection, folds, tables, tagging
from toolkit.intervals import Noted, averaged, chosen_unit, percentiles, scorer, units_of
from toolkit.metrics import resampled
from toolkit.predictions import Predictions, join
from toolkit.protocol import CAUTION
from toolkit.results import find_trainings, read_fold

RESAMPLES = 5000


def compare(first: Path, second: Path, unit: str = "auto") -> dict[str, Any]:
    """The comparison of two runs, collected or not, of one seed or several, or of two folds.

    `counts`: recordings that both have right, the first alone, the second alone, neither, of
    several seeds the means over all pairs of one of each run; `mcnemar`: the exact two-sided p of
    the two in the middle, None of several seeds; `metrics`: for each score `first`, `second`,
    `difference`, means over the seeds, its 95 % `interval` over resamples of whole units, paired,
    and `above`, the share of them above 0 (half of those at 0).

    Raises:
        UserError: the runs did not score the same recordings, with the same labels.
    """
    runs = [read_seeds(path) for path in (first, second)]
    every, (ones, twos) = [*runs[0], *runs[1]], ([seed.rows for seed in run] for run in runs)
    one, _, noted, missing = every[0]
    for seed in every[1:]:
        check_same(one, seed.rows, f"{first} and {second}")
    if len({detection.asked(seed.noted, one.classes) for seed in every}) > 1:
        raise UserError(f"{first} and {second}: different targets or costs of detection; "
                        "train both with the same report.target and report.dcf_*")  # fmt: skip
    unit = chosen_unit(one, unit)
    a, b = (np.mean([right(rows) for rows in some], axis=0) for some in (ones, twos))
    counts = [float(n.sum()) for n in (a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b))]
    alone, units = len(ones) == len(twos) == 1, units_of(one, unit)
    return {
        "runs": [str(first), str(second)],
        "seeds": [len(ones), len(twos)],
        "protocols": [seed.protocol for seed in every],
        "missing": missing,
        "n": len(one.labels),
        "unit": unit,
        "units": len(np.unique(units)),
        "counts": [int(n) if alone else round(n, 1) for n in counts],
        "mcnemar": mcnemar(int(counts[1]), int(counts[2])) if alone else None,
        "metrics": differences(ones, twos, units, noted),
    }


class Run(NamedTuple):
    """One seed of a run; `missing` are the folds that it lacks."""

    rows: Predictions
    protocol: str
    noted: Noted
    missing: Sequence[str]


def right(rows: Predictions) -> np.ndarray:
    """Whether each recording is right, in all classes where it may have several. Shape: (N,)."""
    return (rows.labels == rows.predicted).reshape(len(rows.labels), -1).all(axis=1)


def read_seeds(path: Path) -> Sequence[Run]:
    """A run, or one fold of it; of several seeds all of them."""
    begun = [one for one in find_trainings(path) if one.finished and not one.grid]
    seeds = sorted({one.seed for one in begun if one.seed is not None})
    return [read_run(path / f"seed-{seed}") for seed in seeds] or [read_run(path)]


def read_run(path: Path) -> Run:
    """The recordings of a run, or of one fold, in the order of their names, its protocol, what it
    notes of the detection of two classes, and the folds that a run lacks."""
    alone = (path / "scores.json").exists()
    found = [read_fold(path)] if alone else folds.find_folds(path)
    folds.check(found)
    rows = join([fold.predictions for fold in found]).at("recording")
    result = found[0].result
    order = np.argsort(rows.recording, kind="stable")
    names = [] if alone else folds.fold_names(found)
    missing = [name for name in names if name not in {fold.name for fold in found}]
    return Run(rows.take(order), result["protocol"], result.get("detection"), missing)


def check_same(one: Predictions, two: Predictions, pair: str) -> None:
    """Raise a UserError that names the first difference of what was scored."""
    if one.classes != two.classes:
        names = [", ".join(rows.classes) for rows in (one, two)]
        raise UserError(f"{pair}: different classes ({names[0]}; {names[1]}); nothing to compare")
    here, there = set(one.recording), set(two.recording)
    if here != there:
        alone = [sorted(some) for some in (here - there, there - here)]
        told = [
            f"{len(x)} only in the {w}, as {x[0]}" for x, w in zip(alone, WHICH, strict=True) if x
        ]
        raise UserError(f"{pair}: different recordings, {'; '.join(told)}; collect all folds of "
                        "both, of one shard set")  # fmt: skip
    other = one.labels != two.labels
    if other.any():
        name = one.recording[np.flatnonzero(other.reshape(len(other), -1).any(axis=1))[0]]
        raise UserError(f"{pair}: {name} has another label there; train both on one shard set")


WHICH = ("first", "second")


def mcnemar(first: int, second: int) -> float:
    """McNemar's exact test: how likely a coin falls at least so unevenly as the recordings that
    only one of two runs has right (two-sided)."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def differences(
    ones: Sequence[Predictions], twos: Sequence[Predictions], units: np.ndarray, noted: Noted
) -> dict[str, Any]:
    """Each score of both, and the interval of its difference; see `compare`."""
    scorers = [averaged([scorer(rows, units, noted) for rows in some]) for some in (ones, twos)]
    points = [score(np.ones((1, units.max() + 1))) for score in scorers]

    def gains(drawn: np.ndarray) -> dict[str, np.ndarray]:
        before, after = (score(drawn) for score in scorers)
        return {name: after[name] - before[name] for name in before}

    found = {}
    for name, values in resampled(gains, units, RESAMPLES).items():
        values = values[~np.isnan(values)]
        first, second = (float(point[name][0]) for point in points)
        if len(values) and not np.isnan(first):
            found[name] = {
                "first": first,
                "second": second,
                "difference": second - first,
                "interval": percentiles(values, units),
                "above": float((values > 0).mean() + (values == 0).mean() / 2),
            }
    return found


NAMES = {
    **folds.METRICS,
    **tagging.METRICS,
    "eer": "EER",
    "min_dcf": "min-DCF",
    "roc_auc": "ROC AUC",
}


def markdown(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown: differences, what each has right, and how it was made."""
    rows = [
        [NAMES[name], *(tables.percent(m[k]) for k in (*WHICH, "difference")),
         tables.interval(m["interval"]), tables.percent(m["above"])]
        for name, m in found["metrics"].items()
    ]  # fmt: skip
    head = ["per recording", "first %", "second %", "difference", "95 % interval"]
    differing = tables.rendered([*head, "resamples above 0 %"], rows, tables.caption(found))
    both, first, second, neither = found["counts"]
    counts = tables.rendered(
        ["", "second right", "second wrong"],
        [["first right", both, first], ["first wrong", second, neither]],
        tables.caption(found),
    )
    several = max(found["seeds"]) > 1
    said = [f" ({n} seeds)" if n > 1 else "" for n in found["seeds"]]
    names = [tables.cell(run) + of for run, of in zip(found["runs"], said, strict=True)]
    missing = f"; folds missing in both: {', '.join(found['missing'])}" if found["missing"] else ""
    return "\n\n".join([
        f"# {names[1]} less {names[0]}",
        f"First {names[0]}, second {names[1]}, {found['n']} recordings{missing}.",
        differing,
        counts,
        "What is right: means over all pairs of a seed each, which McNemar's test is not for."
        if several
        else f"McNemar's exact test of {first} against {second} recordings: "
        f"p = {found['mcnemar']:.3g}.",
        f"Intervals: {RESAMPLES} paired bootstrap resamples of whole {found['unit']}s, of which "
        f"there are {found['units']}. They tell of the choice of recordings, not of the chance in "
        f"training{'' if several else ': one run each says nothing of other seeds'}.",
    ]) + "\n"  # fmt: skip


def write(found: Mapping[str, Any], out: Path) -> Sequence[Path]:
    """Write the comparison beside each other as OUT.md and OUT.png; returns both paths."""
    from toolkit import figures

    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_name(out.name + end) for end in (".md", ".png")]
    write_atomic(files[0], markdown(found).encode("utf-8", "replace"))
    optimistic = any(protocol in CAUTION for protocol in found["protocols"])
    caution = tables.caption(found) if optimistic else None
    figures.save(figures.draw_rivals(found, NAMES), files[1], caution)
    return files

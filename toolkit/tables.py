"""A summary (see `folds`) as Markdown tables, for folds.md and the terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.folds import METRICS, PROTOCOLS
from toolkit.predictions import LEVELS

Summary = Mapping[str, Any]


def percent(value: float | None) -> str:
    """A share of 1 as per cent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(low_high: Sequence[float]) -> str:
    """An interval of shares of 1, in per cent."""
    return f"{percent(low_high[0])} to {percent(low_high[1])}"


def cell(value: object) -> str:
    """A value that cannot leave its Markdown cell: one line, nothing that is markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\|<>&`*\[\]])", r"\\\1", text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None) -> str:
    """A Markdown table with aligned columns, the first to the left; `caption` above it."""
    cells = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        texts = [row[0].ljust(widths[0])]
        texts += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(texts)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    above = [f"*{caption}*", ""] if caption else []
    return "\n".join([*above, line(cells[0]), line(rule), *map(line, cells[1:])])


def fold_table(summary: Summary, level: str) -> str:
    """One row a fold, then mean and sample standard deviation, in per cent."""
    rows: list[list[object]] = []
    for fold in summary["folds"]:
        found = fold[level]
        name = fold["fold"] or summary["part"]
        rows.append([name, fold["epoch"], found["n"], *(percent(found[m]) for m in METRICS)])
    if len(rows) > 1:
        for row in ("mean", "std"):
            rows.append([row, "", "", *(percent(summary[level][row][m]) for m in METRICS)])
    header = ["fold", "epoch", f"{level}s", *(f"{name} %" for name in METRICS.values())]
    return table(header, rows, summary["caution"])


def pooled_table(summary: Summary) -> str:
    """Both levels over all folds together, with their intervals, in per cent."""
    rows = []
    for level in LEVELS:
        pooled, found = summary[level]["pooled"], summary[level]["interval"]
        scores = [f"{percent(pooled[m])} ({interval(found[m])})" for m in METRICS]
        rows.append([level, pooled["n"], *scores, percent(pooled["ece"]), f"{pooled['loss']:.4f}"])
    header = [
        "per",
        "n",
        *(f"{name} % (95 % interval)" for name in METRICS.values()),
        "ECE %",
        "loss",
    ]
    return table(header, rows, summary["caution"])


def class_table(summary: Summary) -> str:
    """Precision, recall and F1 of each class over recordings, in per cent."""
    pooled = summary["recording"]["pooled"]
    columns = (pooled["precision"], pooled["recall"], pooled["f1"])
    rows = [
        [name, *(percent(column[i]) for column in columns), pooled["support"][i]]
        for i, name in enumerate(summary["classes"])
    ]
    return table(
        ["class", "precision %", "recall %", "F1 %", "recordings"], rows, summary["caution"]
    )


def score_line(summary: Summary) -> str:
    """The result in one line."""
    found = summary["recording"]
    line = f"accuracy per recording {percent(found['pooled']['accuracy'])} %"
    line += f" (95 % interval {interval(found['interval']['accuracy'])} %)"
    line += f", macro F1 {percent(found['pooled']['macro_f1'])} %"
    if len(summary["folds"]) > 1:
        mean, std = found["mean"]["accuracy"], found["std"]["accuracy"]
        line += f"; over {len(summary['folds'])} folds {percent(mean)} ± {percent(std)} %"
    return line + (f"; {summary['caution']}" if summary["caution"] else "")


def notices(summary: Summary) -> list[str]:
    """What a reader has to know before the numbers, one line each."""
    missing = summary["missing"]
    total = len(missing) + len(summary["folds"])
    lines = [f"{len(missing)} of {total} folds missing: {', '.join(missing)}"] if missing else []
    why = summary.get("why", {}).items()
    lines += [f"fold {name} said last: {' / '.join(words)}" for name, words in why if words]
    for fold in summary["folds"]:
        if end := fold.get("stopped"):
            name = f"fold {fold['fold']}: " if fold["fold"] else ""
            lines.append(f"{name}stopped early, after epoch {end['epoch']}: {end['why']}")
    return [*lines, *summary["warnings"]]


def method(summary: Summary) -> list[str]:
    """How the numbers were computed, a sentence or two each."""
    boot = summary["bootstrap"]
    folds = (
        "Pooled scores take the predictions of all folds together, each made by the model that did "
        "not train on that recording. Mean ± std is over folds (sample standard deviation)."
    )
    return [
        "A recording is scored by the mean of the log-probabilities of its segments, renormalised.",
        *([folds] if len(summary["folds"]) > 1 else []),
        f"Intervals are 95 % percentile bootstrap intervals: {boot['n']} resamples of whole "
        f"{boot['unit']}s. They tell of the choice of recordings, not of the chance in training.",
        "Macro F1 and balanced accuracy weigh all classes alike. ECE takes 15 equal bins of the "
        "confidence, the probability of the predicted class.",
    ]


def markdown(summary: Summary) -> str:
    """folds.md."""
    parts = [
        f"# {cell(summary['run'])}",
        f"**{score_line(summary)}**",
        f"Protocol `{summary['protocol']}`: {PROTOCOLS.get(summary['protocol'], '')}",
        *(f"> **Note:** {cell(line)}" for line in notices(summary)),
    ]
    for level in reversed(LEVELS):
        parts += [f"## Folds, per {level}", fold_table(summary, level)]
    parts += ["## All folds together", pooled_table(summary)]
    parts += ["## Classes, per recording", class_table(summary), *method(summary)]
    return "\n\n".join(parts) + "\n"

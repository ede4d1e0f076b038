"""A summary (see `folds`) as Markdown tables, for folds.md and the terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.decision import told
from toolkit.predictions import LEVELS
from toolkit.protocol import CAUTION, PROTOCOLS

Summary = Mapping[str, Any]


def percent(value: float | None) -> str:
    """A share of 1 as per cent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(low_high: Sequence[float] | None) -> str:
    """An interval of shares of 1, in per cent; a dash for None."""
    if low_high is None:
        return "-"
    return f"{percent(low_high[0])} to {percent(low_high[1])}"


def cell(value: object) -> str:
    """A value that cannot leave its Markdown cell: one line, nothing that is markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\|<>&`*\[\]])", r"\\\1", text)


def rendered(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None) -> str:
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


def caption(summary: Summary) -> str:
    """What stands above every table: the protocol, or several, and a caution where it needs one."""
    found = dict.fromkeys(summary.get("protocols") or [summary["protocol"]])
    told = [f"protocol {name}" for name in found]
    return ", ".join([*told, *(CAUTION[name] for name in found if name in CAUTION)])


def table(summary: Summary, level: str = "recording") -> str:
    """One row a fold, then mean and sample standard deviation, in per cent."""
    rows: list[list[object]] = []
    metrics = summary["metrics"]
    for fold in summary["folds"]:
        found = fold[level]
        name = fold["fold"] or summary["part"]
        rows.append([name, fold["epoch"], found["n"], *(percent(found[m]) for m in metrics)])
    if len(rows) > 1:
        for row in ("mean", "std"):
            rows.append([row, "", "", *(percent(summary[level][row][m]) for m in metrics)])
    header = ["fold", "epoch", f"{level}s", *(f"{name} %" for name in metrics.values())]
    return rendered(header, rows, caption(summary))


def pooled_table(summary: Summary) -> str:
    """Both levels over all folds together, with their intervals, in per cent."""
    rows = []
    for level in LEVELS:
        pooled, found = summary[level]["pooled"], summary[level]["interval"]
        scores = [f"{percent(pooled[m])} ({interval(found[m])})" for m in summary["metrics"]]
        rows.append([level, pooled["n"], *scores, percent(pooled["ece"]), f"{pooled['loss']:.4f}"])
    header = [
        "per",
        "n",
        *(f"{name} % (95 % interval)" for name in summary["metrics"].values()),
        "ECE %",
        "loss",
    ]
    return rendered(header, rows, caption(summary))


def class_table(summary: Summary) -> str:
    """Precision, recall and F1 of each class over recordings, in per cent; of several classes a
    sample also the average precision."""
    pooled = summary["recording"]["pooled"]
    columns = [pooled["precision"], pooled["recall"], pooled["f1"]]
    names = ["precision %", "recall %", "F1 %"]
    if "class_average_precision" in pooled:
        columns, names = [*columns, pooled["class_average_precision"]], [*names, "AP %"]
    rows = [
        [name, *(percent(column[i]) for column in columns), pooled["support"][i]]
        for i, name in enumerate(summary["classes"])
    ]
    return rendered(["class", *names, "recordings"], rows, caption(summary))


def detection_table(summary: Summary) -> str:
    """EER, min-DCF and ROC AUC of two classes, over recordings, with their intervals."""
    noted = summary["detection"]
    rows: list[list[object]] = []
    for row in noted["rows"]:
        between = row["interval"]
        seen = {True: "yes", False: "no", None: "in some folds"}.get(row.get("seen"), "")
        dcf = "-" if row["min_dcf"] is None else f"{row['min_dcf']:.3f}"
        if between["min_dcf"]:
            dcf += " ({:.3f} to {:.3f})".format(*between["min_dcf"])
        shares = [f"{percent(row[k])} ({interval(between[k])})" for k in ("eer", "roc_auc")]
        rows.append(
            [row["name"], seen if "seen" in row else "", row["n"], shares[0], dcf, shares[1]]
        )
    head = [f"{noted['target']} against", "in training", "recordings", "EER % (95 % interval)"]
    return rendered([*head, "min-DCF", "ROC AUC %"], rows, caption(summary))


def score_line(summary: Summary) -> str:
    """The result in one line."""
    found, (lead, name) = summary["recording"], next(iter(summary["metrics"].items()))
    line = f"{name} per recording {percent(found['pooled'][lead])} %"
    line += f" (95 % interval {interval(found['interval'][lead])} %)"
    line += f", macro F1 {percent(found['pooled']['macro_f1'])} %"
    if len(summary["folds"]) > 1:
        mean, std = found["mean"][lead], found["std"][lead]
        line += f"; over {len(summary['folds'])} folds {percent(mean)} ± {percent(std)} %"
    if noted := summary["detection"]:
        first = noted["rows"][0]
        line += f", EER {percent(first['eer'])} % ({interval(first['interval']['eer'])} %)"
    return f"{line}; {caption(summary)}"


def notices(summary: Summary) -> list[str]:
    """What a reader has to know before the numbers, one line each."""
    lines = []
    if missing := summary["missing"]:
        total, at = len(missing) + len(summary["folds"]), ", ".join(summary["missing_folders"])
        lines = [f"{len(missing)} of {total} folds missing: {', '.join(missing)} ({at})"]
    why = summary.get("why", {}).items()
    lines += [f"fold {name} said last: {' / '.join(words)}" for name, words in why if words]
    for fold in summary["folds"]:
        if end := fold.get("stopped"):
            name = f"fold {fold['fold']}: " if fold["fold"] else ""
            lines.append(f"{name}stopped early, after epoch {end['epoch']}: {end['why']}")
    return [*lines, *summary["warnings"]]


def method(summary: Summary) -> list[str]:
    """How the numbers were computed, a sentence or two each."""
    boot, noted = summary["bootstrap"], summary["detection"]
    folds = (
        "Pooled scores take the predictions of all folds together, each made by the model that did "
        "not train on that recording. Mean ± std is over folds (sample standard deviation)."
    )
    one, any_ = len(summary["folds"]) == 1, any(summary["decisions"].values())
    several = "Each fold decides by thresholds that its validation part has chosen."
    costs = (
        "Detection accepts {target}: min-DCF has prior {prior:g} of the others, costs {miss:g} of "
        "a miss and {false_alarm:g} of a false alarm, and is normalised."
    )
    return [
        "A recording is scored by the mean of the log-probabilities of its segments, renormalised.",
        *([folds] if len(summary["folds"]) > 1 else []),
        "Intervals are 95 % percentile bootstrap intervals, expanded where there is little to draw "
        f"from: {boot['n']} resamples of whole {boot['unit']}s, of which there are "
        f"{summary['recording']['units']}. They tell of the "
        "choice of recordings, not of the chance in training.",
        *([told(next(iter(summary["decisions"].values())))] if one else [several] if any_ else []),
        *([costs.format(**noted["costs"], target=noted["target"])] if noted else []),
        "Macro F1 and balanced accuracy weigh all classes alike. ECE takes 15 equal bins of the "
        "confidence, the highest probability.",
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
        parts += [f"## Folds, per {level}", table(summary, level)]
    parts += ["## All folds together", pooled_table(summary)]
    if summary["detection"]:
        parts += ["## Detection, per recording", detection_table(summary)]
    parts += ["## Classes, per recording", class_table(summary), *method(summary)]
    return "\n\n".join(parts) + "\n"

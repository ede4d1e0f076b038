"""A made-up run: folds trained on a made-up shard set, and the page that tells of them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from shards.index import ROW, ShardSet
from toolkit.report import write_fold

CLASSES = ["001 - Dog", "002 - Cat & cow", "003 - Rain"]


HOSTILE = "<script>alert(1)</script>.wav"


def make_set(folder: Path, folds: int = 3, recordings: int = 12) -> ShardSet:
    """`recordings` in each fold, classes in turn, two segments each, two recordings a group."""
    folder.mkdir(parents=True)
    total = folds * recordings
    paths = [HOSTILE, *(f"rain/{number}, night.wav" for number in range(1, total))]
    lines = [{"path": path, "group": f"g{i // 2}"} for i, path in enumerate(paths)]
    (folder / "recordings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        (0, 0, 2.5 * s, 0, i, i % 3, i // recordings, 2) for i in range(total) for s in range(2)
    ]
    np.save(folder / "index.npy", np.array(rows, ROW))
    names = [str(number + 1) for number in range(folds)]
    return ShardSet(folder, {"classes": CLASSES, "folds": names})


def write_training(folder: Path, lr: float) -> None:
    """What the training loop leaves besides the scores."""
    folder.mkdir(parents=True, exist_ok=True)
    config = f"run: {{name: night-rain}}\noptim: {{lr: {lr}}}\ntrack: {{api_key: hush-hush}}\n"
    (folder / "config.yaml").write_text(config)
    environment = {"wavefold": "0.1.0", "command": "train.py x.yaml --track.api_key=hush-hush"}
    (folder / "environment.json").write_text(json.dumps(environment))
    records: list[dict[str, Any]] = []
    for epoch in (1, 2):
        step = {"step": 10 * epoch, "epoch": epoch, "seconds": 1.5 * epoch}
        records.append({"kind": "train", **step, "loss": 1 / epoch, "lr": 1e-3})
        records.append({"kind": "epoch", **step, "train_loss": 1.1 / epoch})
        records.append({"kind": "eval", "part": "test", **step, "loss": 1.2, "accuracy": 0.5})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "tra')  # killed while writing


def train(
    run: Path,
    shard_set: ShardSet,
    fold: int,
    protocol: str = "kfold",
    lr: float = 0.001,
    seed: int = 0,
) -> dict[str, Any]:
    """A model that hears the label through noise."""
    folder = run if protocol == "split" else run / f"fold-{fold}"
    write_training(folder, lr)
    numbers = np.flatnonzero(shard_set.index["fold"] == fold)
    labels = shard_set.index["label"][numbers]
    logits = np.random.default_rng([fold, seed]).normal(size=(len(numbers), 3)) * 1.3
    logits[np.arange(len(numbers)), labels] += 1.5
    if fold == 0:
        logits[:2] = [0, 0, 9]  # the hostile recording is wrong, and sure of it
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    header = {
        "protocol": protocol,
        "part": "test",
        "fold": None if protocol == "split" else shard_set.folds[fold],
        "folds": shard_set.folds,
        "step": 20,
        "epoch": 2,
        "seconds": 3.0,
        "world_size": 1,
    }
    return write_fold(folder, shard_set, numbers, log_probs, header)


def change(fold: Path, **values: str) -> None:
    """Give scores.json other values."""
    file = fold / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Page(HTMLParser):
    """The tags and the text of a page; raises where a tag is closed that was not open."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] if tag not in self.VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

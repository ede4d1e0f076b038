"""A small training on the tones, as most tests configure it, and what it says of itself."""

import json
from pathlib import Path
from typing import Any

import yaml

from toolkit.config import parse
from toolkit.schema import Config


def values(shards: object, runs: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of its config, with the keys of `sections` over them; runs go below `runs`."""
    found: dict[str, dict[str, Any]] = {
        "run": {"name": "tones", "dir": str(runs)},
        "data": {"shards": str(shards), "protocol": "kfold"},
        "model": {"name": "cnn_tiny", "norm_batch": 4},
        "train": {"batch_size": 8, "threads": 1},
    }
    return {name: found.get(name, {}) | sections.get(name, {}) for name in found | sections}


def configured(shards: object, runs: Path, **sections: dict[str, Any]) -> Config:
    """The same, parsed."""
    return parse(values(shards, runs, **sections))


def config_file(
    folder: Path, shards: object, runs: str = "runs", **sections: dict[str, Any]
) -> str:
    """The same, written into `folder`, below which its `runs` go."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values(shards, folder / runs, **sections)))
    return str(file)


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or those of one kind."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if kind in (None, line["kind"])]

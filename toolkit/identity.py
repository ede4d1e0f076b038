"""What a run may not change between two starts: its model, its data, its classes."""

import hashlib
import json
from typing import Any

from shards.index import ShardSet
from toolkit.strategy import Strategy


def identity(strategy: Strategy, shard_set: ShardSet) -> dict[str, Any]:
    """The names and shapes of the weights, the shard sets by their content, the classes."""
    sets = getattr(shard_set, "sources", (shard_set,))
    return {
        "model": {name: list(shape) for name, shape in strategy.shapes.items()},
        "data": [content(one) for one in sets],
        "classes": shard_set.class_names,
    }


def content(shard_set: ShardSet) -> dict[str, Any]:
    """A shard set, wherever it lies: SHA-256 of its shards' and of its index, from dataset.json."""
    shards = [shard.get("sha256") for shard in shard_set.info["shards"]]
    index = shard_set.info.get("files", {}).get("index.npy", {})
    return {
        "shards": len(shards),
        "samples": len(shard_set),
        "spectrograms": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
        "index": index.get("sha256"),
    }


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs, in words: of the checkpoint, and of this start."""
    found = []
    shapes = {n for n in there["model"] | here["model"] if there["model"].get(n) != here["model"].get(n)}  # noqa: E501
    if shapes:
        words = [change(n, there["model"].get(n), here["model"].get(n)) for n in sorted(shapes)[:3]]
        more = [f"and {len(shapes) - 3} more"] if len(shapes) > 3 else []
        found.append(f"model: {', '.join(words + more)}")
    if there["classes"] != here["classes"]:
        found.append(change("classes", ", ".join(there["classes"]), ", ".join(here["classes"])))
    if len(there["data"]) != len(here["data"]):
        found.append(change("data: shard sets", len(there["data"]), len(here["data"])))
        return found
    for old, new in zip(there["data"], here["data"], strict=True):
        if old["spectrograms"] != new["spectrograms"]:
            sizes = [f"{x['samples']} samples in {x['shards']} shards" for x in (old, new)]
            found.append(change("data", *sizes) if sizes[0] != sizes[1] else "data: other content")
        elif old["index"] != new["index"]:
            found.append("data: other labels, parts or folds for the same samples")
    return found


def change(what: str, there: Any, here: Any) -> str:
    """`what A there, B here`."""
    return f"{what} {'missing' if there is None else there} there, {'missing' if here is None else here} here"  # noqa: E501

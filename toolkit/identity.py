"""What a run may not change between two starts: its model, its data, its classes, their order."""

import hashlib
import json
from typing import Any

from shards.index import ShardSet
from shards.order import Order
from toolkit.strategy import Strategy


def identity(strategy: Strategy, shard_set: ShardSet, order: Order) -> dict[str, Any]:
    """The names and shapes of the weights, the shard sets by their content, the classes, in which
    order samples come."""
    sets = getattr(shard_set, "sources", (shard_set,))
    return {
        "model": {name: list(shape) for name, shape in strategy.shapes.items()},
        "data": [content(one) for one in sets],
        "classes": shard_set.class_names,
        "order": order.digest(),
    }


def content(shard_set: ShardSet) -> dict[str, Any]:
    """A shard set, wherever it lies: SHA-256 of its shards' and of its index, from dataset.json."""
    shards = [shard.get("sha256") for shard in shard_set.info["shards"]]
    index = shard_set.info.get("files", {}).get("index.npy", {})
    return {
        "shards": len(shards),
        "samples": shard_set.info.get("samples"),
        "spectrograms": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
        "index": index.get("sha256"),
    }


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What differs between a checkpoint and this start, in words."""
    found = model_changes(there["model"], here["model"])
    if there["classes"] != here["classes"]:
        names = [", ".join(one["classes"]) for one in (there, here)]
        found.append(f"classes: {names[0]} there, {names[1]} here")
    if there.get("order") != here["order"]:
        found.append("order: other samples come; data.weights may have other values")
    old, new = there["data"], here["data"]
    if len(old) != len(new):
        return [*found, f"data: {len(old)} shard sets there, {len(new)} here"]
    return found + [data_change(*pair) for pair in zip(old, new, strict=True) if pair[0] != pair[1]]


def model_changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The first three tensors that are not what they were."""
    names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    words = [
        f"{n} is {there.get(n, 'missing')} there, {here.get(n, 'missing')} here" for n in names
    ]
    more = [f"and {len(names) - 3} more tensors"] if len(names) > 3 else []
    return [f"model: {', '.join(words[:3] + more)}"] if names else []


def data_change(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What is not the same of a shard set."""
    if there["spectrograms"] == here["spectrograms"]:
        return "data: other labels, parts or folds for the same samples"
    sizes = [f"{one['samples']} samples in {one['shards']} shards" for one in (there, here)]
    return f"data: {sizes[0]} there, {sizes[1]} of other content here"

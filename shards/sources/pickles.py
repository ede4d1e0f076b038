"""Old sets in pickles: features, labels, folds and class names."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.sources.clips import Clip
from shards.sources.unpickle import load


def from_pickles(old: Path) -> list[Clip]:
    """A clip for each feature; labels, folds and class names from the pickles beside it."""
    features = load(old / "features.pkl")
    if not isinstance(features, dict | list | tuple | np.ndarray):
        raise UserError(f"{old}/features.pkl: a {type(features).__name__}; expected arrays")
    names = list(features) if isinstance(features, dict) else list(range(len(features)))
    labels = column(old / "labels.pkl", names)
    folds = column(old / "folds.pkl", names) if (old / "folds.pkl").is_file() else None
    mapping = class_names(old / "class_mapping.pkl")
    clips = [
        Clip(
            name if isinstance(name, str) else f"clip-{name:06d}",
            mapping.get(plain(labels[n]), plain(labels[n])),
            None,
            plain(folds[n]) if folds is not None else None,
            partial(np.asarray, features[name]),
        )
        for n, name in enumerate(names)
    ]
    nameless = {clip.label for clip in clips} - {*mapping.values(), ""}
    if mapping and nameless:
        raise UserError(f"{old}/class_mapping.pkl: no name for label {min(nameless)!r}; add it")
    return clips


def column(file: Path, names: Sequence[Any]) -> list[Any]:
    """A value for each of `names`, from a list of them or a dict by name."""
    if not file.is_file():
        raise UserError(f"{file}: missing; its place is beside features.pkl")
    values = load(file)
    if isinstance(values, dict) and set(values) >= set(names):
        values = [values[name] for name in names]
    if not np.iterable(values):
        values = [values]
    if isinstance(values, dict) or len(values) != len(names):
        raise UserError(f"{file}: {len(values)} values for the {len(names)} of features.pkl")
    return list(values)


def class_names(file: Path) -> dict[str, str]:
    """The class name of each label; a mapping may be written in either direction."""
    if not file.is_file():
        return {}
    mapping = load(file)
    if not isinstance(mapping, dict | list | tuple | np.ndarray) or not np.iterable(mapping):
        raise UserError(f"{file}: a {type(mapping).__name__}; expected names by their labels")
    pairs = mapping.items() if isinstance(mapping, dict) else enumerate(mapping)
    named = [(plain(a), plain(b)) for a, b in pairs]
    forwards = all(a.isdigit() for a, _ in named)
    return {a: b for a, b in named} if forwards else {b: a for a, b in named}


def plain(value: Any) -> str:
    """A label or a fold as text: 3, 3.0 and np.int64(3) are "3", None and NaN are none."""
    if np.ndim(value):
        raise UserError(f"a label or fold of shape {np.shape(value)}; expected one value a clip")
    number = isinstance(value, float | np.floating) and float(value).is_integer()
    if number:
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "" if value is None or value != value else str(value)

"""Old sets in pickles, read so that none of them can run code."""

import collections
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.sources.tables import Clip

#: How NumPy 1 and 2 spell an array, its parts, and (protocol 5) an array's buffer.
_RECONSTRUCT, _SCALAR = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", _RECONSTRUCT),
        ("multiarray", "scalar", _SCALAR),
        ("numeric", "_frombuffer", _BUFFER),
    )
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, lists, tuples, dicts, strings and numbers; anything else stops it."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call, which is all that it can do besides plain values."""
        if (module, name) not in ADMITTED:
            raise UserError(f"holds {module}.{name}")
        return ADMITTED[module, name]


def load(file: Path) -> Any:
    """What a pickle holds.

    Raises:
        UserError: it holds anything but arrays, lists, dicts, strings and numbers, or is damaged.
    """
    try:
        with open(file, "rb") as content:
            return ArrayUnpickler(content, encoding="latin1").load()
    except UserError as error:
        raise UserError(
            f"{file}: {error}; only arrays, lists, dicts, strings and numbers are read from a "
            "pickle, since others can run code: save it as .npy"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{file}: no pickle that can be read ({error}); copy it again") from None


def from_pickles(old: Path) -> list[Clip]:
    """A clip for each feature; labels, folds and class names from the pickles beside it."""
    features = load(old / "features.pkl")
    if not isinstance(features, dict | list | tuple | np.ndarray):
        raise UserError(f"{old}/features.pkl: a {type(features).__name__}; expected arrays")
    names = list(features) if isinstance(features, dict) else list(range(len(features)))
    labels = column(old / "labels.pkl", names)
    folds = column(old / "folds.pkl", names) if (old / "folds.pkl").is_file() else None
    mapping = class_names(old / "class_mapping.pkl")
    return [
        Clip(
            name if isinstance(name, str) else f"clip-{name:06d}",
            mapping.get(plain(labels[n]), plain(labels[n])),
            None,
            plain(folds[n]) if folds is not None else None,
            partial(np.asarray, features[name]),
        )
        for n, name in enumerate(names)
    ]


def column(file: Path, names: Sequence[Any]) -> list[Any]:
    """A value for each of `names`, from a list of them or a dict by name."""
    if not file.is_file():
        raise UserError(f"{file}: missing; its place is beside features.pkl")
    values = load(file)
    if isinstance(values, dict) and set(values) >= set(names):
        values = [values[name] for name in names]
    if isinstance(values, dict) or len(values) != len(names):
        raise UserError(f"{file}: {len(values)} values for the {len(names)} of features.pkl")
    return list(values)


def class_names(file: Path) -> dict[str, str]:
    """The class name of each label; a mapping may be written in either direction."""
    if not file.is_file():
        return {}
    mapping = load(file)
    pairs = mapping.items() if isinstance(mapping, dict) else enumerate(mapping)
    named = [(plain(a), plain(b)) for a, b in pairs]
    forwards = all(a.isdigit() for a, _ in named)
    return {a: b for a, b in named} if forwards else {b: a for a, b in named}


def plain(value: Any) -> str:
    """A label or a fold as text: 3, 3.0 and np.int64(3) are "3"."""
    if np.ndim(value):
        raise UserError(f"a label or fold of shape {np.shape(value)}; expected one value a clip")
    number = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if number else str(value)

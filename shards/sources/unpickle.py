"""An unpickler of arrays and plain values, which no pickle can make run or forge anything."""

import collections
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError


class Dtype:
    """Stands in for numpy.dtype, which would take flags from a pickle that let it forge pointers.

    Numbers, strings and objects only.
    """

    def __init__(self, text: str, *_: Any) -> None:
        self.real = np.dtype(str(text))
        if self.real.kind not in "biufcSUO":
            raise UserError(f"holds an array of {text}")

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.real = self.real.newbyteorder(state[1])


class Array(np.ndarray):
    """An array that checks the lengths in a pickle, which NumPy does not do for objects."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        version, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        is_list = dtype.real.kind == "O"
        size = math.prod(shape) * (1 if is_list else dtype.real.itemsize)
        if (
            not isinstance(data, list if is_list else bytes)
            or len(data) != size
            or min(shape, default=0) < 0
        ):
            raise ValueError("an array of another length than it says")
        checked: Any = (version, tuple(shape), dtype.real, fortran, data)
        super().__setstate__(checked)


def reconstruct(*_: Any) -> Array:
    """An empty array, which __setstate__ fills."""
    return np.ndarray.__new__(Array, (0,))


def scalar(dtype: Dtype, data: bytes) -> Any:
    """A NumPy number or string."""
    return np.frombuffer(data, dtype.real, 1)[0]


def from_buffer(
    buffer: bytes, dtype: Dtype, shape: tuple[int, ...], order: str, axes: Any = None
) -> np.ndarray:
    """An array as pickle protocol 5 has it."""
    flat = np.frombuffer(buffer, dtype.real)
    if order == "K" and axes is not None:
        return flat.reshape(shape, order="C").transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


#: What NumPy 1 and 2 write for an array, and what is called in its place.
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # named to _reconstruct, not called
    ("numpy", "dtype"): Dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", reconstruct),
        ("multiarray", "scalar", scalar),
        ("numeric", "_frombuffer", from_buffer),
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
            found = ArrayUnpickler(content, encoding="latin1").load()
        if isinstance(found, np.ndarray) and not found.nbytes:  # its length may be any number
            raise ValueError("an array of nothing")
        return found
    except UserError as error:
        raise UserError(
            f"{file}: {error}; only arrays, lists, dicts, strings and numbers are read from a "
            "pickle, since others can run code: save it as .npy"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: no pickle that can be read ({reason}); copy it again") from None

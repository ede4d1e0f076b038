"""Pickles are read without running what they hold."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from legacy import pickle_set

from shards.__main__ import main
from shards.errors import UserError
from shards.sources.unpickle import load


class Evil:
    """Would run a command when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


class Sly(Evil):
    """Would do so by the builtins."""

    def __reduce__(self):
        return eval, (f"open({str(self.file)!r}, 'w')",)


@pytest.mark.parametrize(("kind", "named"), [(Evil, "posix.system"), (Sly, "builtins.eval")])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_named_and_does_not_run(tmp_path, capsys, kind, named, protocol):
    old, mark = pickle_set(tmp_path / "old"), tmp_path / "ran"
    hostile = pickle.dumps([1, {"a": kind(mark)}], protocol)
    (old / "labels.pkl").write_bytes(hostile)
    assert main(["convert", str(old), str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    told = named if protocol > 2 else named.replace("builtins", "__builtin__")
    assert named in error or told in error
    assert "labels.pkl" in error and error.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "set").exists()
    pickle.loads(hostile)  # in earnest it runs
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, "a", True, None, (b"x", {"k": [np.float32(3)]})],
        OrderedDict(a=np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.array([np.zeros((2, 3)), np.ones((3, 4))], dtype=object),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["dog", "rain"]),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_back(tmp_path, value, protocol):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    assert repr(load(file)).replace("Array(", "array(") == repr(value)


class Forged:
    """An array with a state of one's own."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.array(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


class ForgedDtype:
    """Objects whose flags say that they may be read from bytes: pointers at will."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "forged",
    [
        Forged(1, (2,), ForgedDtype(), False, b"A" * 16),
        Forged(1, (9,), np.dtype("O"), False, [1]),
        Forged(1, (9,), np.dtype("f8"), False, b"A" * 8),
        Forged(1, (-1, -1), np.dtype("f8"), False, b"A" * 8),
        Forged(1, (1,), np.dtype([("a", "f8")]), False, b"A" * 8),
    ],
)
def test_forged_arrays_are_refused(tmp_path, forged):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(forged, 4))
    with pytest.raises(UserError, match=r"x\.pkl"):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04garbage", b"cnumpy\nndarray\n."[:-1], b"Ppersistent\n."]
)
def test_a_damaged_pickle_is_one_line(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError, match="no pickle that can be read") as error:
        load(tmp_path / "x.pkl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_array_of_nothing_may_not_claim_a_length(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(np.zeros((10**15, 0)), protocol))
    with pytest.raises(UserError, match="an array of nothing"):
        load(tmp_path / "x.pkl")
    forged = Forged(1, (10**15,), np.dtype("S0"), False, b"")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(forged, protocol))
    with pytest.raises(UserError, match="an array of nothing"):
        load(tmp_path / "x.pkl")

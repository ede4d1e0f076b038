"""predictions.csv: what is written comes back, and damage is told with its line."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.index import ROW, ShardSet
from toolkit.predictions import Predictions, of_samples, read_predictions, texts, write_predictions

NAMES = ["a,b", 'say "hi"', "Δ 日本", "line\nbreak\rback"]
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def made_up(recordings: list[str], classes: tuple[str, ...] = ("x", "y", "z")) -> Predictions:
    rng = np.random.default_rng(0)
    n = len(recordings)
    probabilities = rng.dirichlet(np.ones(len(classes)), size=n)
    return Predictions(
        classes=classes,
        level=texts(["segment"] * (n - 1) + ["recording"]),
        recording=texts(recordings),
        group=texts(["g"] * n),
        attack=texts([""] * n),
        start=np.array([2.5] * (n - 1) + [np.nan]),
        fold=texts(["1"] * n),
        labels=rng.integers(len(classes), size=n),
        predicted=probabilities.argmax(axis=1),
        probabilities=probabilities,
    )


def assert_same(found: Predictions, expected: Predictions) -> None:
    assert found.classes == expected.classes
    for name in ("level", "recording", "group", "attack", "fold", "labels", "predicted"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    np.testing.assert_array_equal(found.start, expected.start)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-8)


def test_odd_names_come_back(tmp_path: Path) -> None:
    expected = made_up([*NAMES, "not utf-8: \udcff.wav"], tuple(NAMES))
    write_predictions(tmp_path / "p.csv", expected)
    assert_same(read_predictions(tmp_path / "p.csv"), expected)
    assert b"not utf-8: \xff.wav" in (tmp_path / "p.csv").read_bytes()


@settings(max_examples=60, deadline=None, database=None)
@given(names=st.lists(text, min_size=1, max_size=4))
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("any") / "p.csv"
    write_predictions(file, made_up(names))
    assert_same(read_predictions(file), made_up(names))


def test_the_file_is_plain_csv(tmp_path: Path) -> None:
    expected = made_up(["a.wav", "b.wav"])
    write_predictions(tmp_path / "p.csv", expected)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [
        *("level", "recording", "group", "start", "fold", "label", "predicted"),
        *("p_x", "p_y", "p_z"),
    ]
    assert [row["start"] for row in rows] == ["2.5", ""]
    assert float(rows[0]["p_y"]) == pytest.approx(expected.probabilities[0, 1], rel=1e-8)
    assert b"\r" not in (tmp_path / "p.csv").read_bytes()


def test_attacks_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    expected = replace(made_up(["a.wav", "b.wav"]), attack=texts(["A07", ""]))
    write_predictions(tmp_path / "p.csv", expected)
    assert_same(read_predictions(tmp_path / "p.csv"), expected)
    assert (tmp_path / "p.csv").read_text().startswith("level,recording,group,attack,start,")
    damaged = (tmp_path / "p.csv").read_text().replace("A07,", "", 1)
    (tmp_path / "p.csv").write_text(damaged)
    with pytest.raises(UserError, match="line 2: 10 values, expected 11"):
        read_predictions(tmp_path / "p.csv")


def test_a_caution_stands_in_every_row(tmp_path: Path) -> None:
    expected = replace(made_up(["a.wav", "b.wav"]), attack=texts(["A07", ""]))
    write_predictions(tmp_path / "p.csv", expected, "optimistic: beware")
    assert_same(read_predictions(tmp_path / "p.csv"), expected)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as lines:
        assert [row["caution"] for row in csv.DictReader(lines)] == ["optimistic: beware"] * 2


def test_levels_are_kept_apart() -> None:
    both = made_up(["a.wav", "a.wav", "a.wav"])
    assert both.at("segment").labels.tolist() == both.labels[:2].tolist()
    assert both.at("recording").probabilities.tolist() == both.probabilities[2:].tolist()
    assert np.exp(both.log_probs) == pytest.approx(both.probabilities)


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("level,", "stage,", 1, "columns are not"),
        ("segment,b.wav", "frame,b.wav", 3, "level 'frame'"),
        ("b.wav,g,2.5,1,", "b.wav,g,2.5,", 3, "9 values, expected 10"),
        ("b.wav,g,2.5", "b.wav,g,soon", 3, "soon"),
        ("b.wav,g,2.5,1,x", "b.wav,g,2.5,1,w", 3, "class 'w'"),
        ("b.wav", '"b.wav', 4, "unexpected end of data"),
    ],
)
def test_damage_is_told_with_file_and_line(tmp_path, old, new, line, why):
    file = tmp_path / "p.csv"
    predictions = made_up(["a.wav", "b.wav", "c.wav"])
    predictions.labels[:] = 0
    write_predictions(file, predictions)
    damaged = file.read_text()
    assert old in damaged
    file.write_text(damaged.replace(old, new, 1))
    with pytest.raises(UserError, match=f"{line}: .*{why}") as told:
        read_predictions(file)
    assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    write_predictions(file, made_up(["a.wav", "b.wav", "c.wav"]))
    file.write_bytes(file.read_bytes()[:-9])  # inside the last number
    with pytest.raises(UserError, match="line 4: probabilities sum to"):
        read_predictions(file)
    with pytest.raises(UserError, match="missing"):
        read_predictions(tmp_path / "none.csv")


def test_samples_of_a_shard_set(tmp_path: Path) -> None:
    rows = [(0, 0, 4 * s, 0, r, r, 0, 0) for r in (0, 1) for s in (0, 1)]
    np.save(tmp_path / "index.npy", np.array(rows, ROW))
    lines = '{"path": "a.wav", "group": "A"}\n{"path": "b.wav", "group": null}\n'
    (tmp_path / "recordings.jsonl").write_text(lines)
    shard_set = ShardSet(tmp_path, {"classes": ["001 - Dog", "002 - Cat"]})
    log_probs = np.log([[0.3, 0.7], [0.9, 0.1], [0.2, 0.8]])
    found = of_samples(shard_set, np.array([3, 0, 1]), log_probs, "f2")  # in another order
    assert found.classes == ("Dog", "Cat")
    assert found.recording.tolist() == ["a.wav", "a.wav", "b.wav", "a.wav", "b.wav"]
    assert found.group.tolist() == ["A", "A", "", "A", ""]
    assert found.start[:3].tolist() == [0, 4, 4] and np.isnan(found.start[3:]).all()
    assert set(found.fold) == {"f2"}
    a, b = (0.9 * 0.2) ** 0.5, (0.1 * 0.8) ** 0.5
    assert found.at("recording").probabilities[0] == pytest.approx([a / (a + b), b / (a + b)])
    assert found.at("recording").labels.tolist() == [0, 1]
    assert found.predicted.tolist() == [0, 1, 1, 0, 1]

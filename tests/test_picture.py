"""The contact sheet of a real little shard set."""

import sys

import matplotlib.image
import numpy as np
import pytest
import soundfile

from shards.build import build
from shards.errors import UserError
from shards.index import ShardSet, open_set
from shards.picture import choose_panels, contact_sheet, draw, mel_ticks, shorten

LABELS = ("001 - Low tone", "002 - $high_{tone}")


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    """Two classes, tones at 500 and 4,000 Hz: three recordings of two segments, and one of one."""
    root = tmp_path_factory.mktemp("picture")
    for label, hz, count, seconds in zip(LABELS, (500, 4000), (3, 1), (2, 1), strict=True):
        (root / "audio" / label).mkdir(parents=True)
        for number in range(count):
            wave = 0.1 * np.sin(2 * np.pi * hz * np.arange(16000 * seconds) / 16000)
            wave *= 1 + 0.1 * number
            soundfile.write(root / "audio" / label / f"$a_{number}$.wav", wave, 16000)
    build(str(root / "audio"), str(root / "set"), segment_seconds=1, split="1,0,0", workers=1)
    return open_set(root / "set")


def test_it_is_a_picture_and_the_same_each_time(shard_set, tmp_path):
    for name in ("a.png", "new/b.png"):
        contact_sheet(shard_set, tmp_path / name, per_class=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "new"]


def test_no_figure_is_left_behind(shard_set, tmp_path):
    pyplot = sys.modules.get("matplotlib.pyplot")
    contact_sheet(shard_set, tmp_path / "a.png", per_class=1)
    if pyplot is None:
        assert "matplotlib.pyplot" not in sys.modules
    else:
        assert not pyplot.get_fignums()


def test_panels_show_other_recordings_before_other_segments(shard_set):
    panels = choose_panels(shard_set, per_class=4, seed=0)
    low, high = ([p.title for p in panels if p.row == row] for row in range(2))
    assert len(low) == 4 and len(high) == 1
    assert {title.split(" · ")[1] for title in low} == {f"$a_{n}$.wav" for n in range(3)}
    assert all(title.startswith("Low tone · ") for title in low)
    assert high == ["$high_{tone} · $a_0$.wav · 0 s"]


def test_each_panel_stands_in_its_class_and_ticks_tell_its_tone(shard_set):
    figure = draw(shard_set, choose_panels(shard_set, 2, seed=1), 2)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 3
    for axes in shown:
        hz = 500 if axes.get_title(loc="left").startswith("Low") else 4000
        band = axes.images[0].get_array()[:, 5:25].mean(axis=1).argmax()
        tick = list(mel_ticks(shard_set)).index("500" if hz == 500 else "4k")
        assert abs(band - axes.get_yticks()[tick]) <= 1
        assert axes.get_xlim() == (0, 32 * 512 / 16000)
    limits = {axes.images[0].get_clim() for axes in shown}
    assert len(limits) == 1
    low, high = limits.pop()
    assert high - low == pytest.approx(80)


def test_ticks_stand_apart(shard_set):
    places = sorted(mel_ticks(shard_set).values())
    assert len(places) >= 4
    assert np.diff(places).min() > 128 / 9


def test_the_seed_chooses(shard_set):
    chosen = {tuple(p.title for p in choose_panels(shard_set, 1, seed)) for seed in range(20)}
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("text", "short"),
    [("dog.wav", "dog.wav"), ("a-very-long-name-07.wav", "a-ver…7.wav"), ("a\udcffb", "a?b")],
)
def test_names_are_shortened_in_the_middle(text, short):
    assert shorten(text, 11) == short


def test_what_cannot_be_drawn_is_said(shard_set, tmp_path):
    with pytest.raises(UserError, match="per_class=0"):
        contact_sheet(shard_set, tmp_path / "a.png", per_class=0)
    empty = ShardSet(shard_set.path, shard_set.info)
    empty.__dict__["index"] = shard_set.index[:0]
    with pytest.raises(UserError, match="no samples"):
        contact_sheet(empty, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())

"""The demonstration set: its bytes, its balance, its sounds."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import soundfile
from scipy.signal import stft

from shards.__main__ import main
from shards.audio import AudioError, decode, is_silent, probe
from shards.durable import sha256
from shards.errors import UserError
from shards.sources.demo import synthesize
from shards.sources.environment import BROKEN, SECONDS, SILENT, plan, write_extras
from shards.sources.sounds import RATE, SOUNDS


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "audio"
    assert synthesize(out, seed=3, per_class=5) == 6 * 5 + 2
    return out


def test_the_same_seed_gives_the_same_bytes(demo, tmp_path):
    synthesize(tmp_path / "again", seed=3, per_class=5)
    assert digests(tmp_path / "again") == digests(demo)


def test_another_seed_gives_other_sounds(demo, tmp_path):
    synthesize(tmp_path / "other", seed=4, per_class=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(demo).values()) - {
        digests(demo)[SILENT]
    }


def test_every_class_has_every_site_rate_container_and_both_channel_counts(demo):
    found = defaultdict(lambda: defaultdict(Counter))
    for path in demo.glob("*/site-?_??.*"):
        header, counts = probe(path), found[path.parent.name]
        counts["site"][path.name[:6]] += 1
        counts["rate"][header.sample_rate] += 1
        counts["channels"][header.channels] += 1
        counts["container"][path.suffix] += 1
        assert 2 <= header.seconds <= 6.001
    assert set(found) == set(SOUNDS)
    for counts in found.values():
        assert counts["site"] == Counter({f"site-{n}": 1 for n in range(1, 6)})
        assert counts["rate"] == Counter((8000, 16000, 22050, 44100, 48000))
        assert counts["channels"] == Counter({1: 3, 2: 2})
        assert counts["container"] == Counter({".wav": 3, ".flac": 2})


def test_lengths_tell_nothing():
    lengths = defaultdict(list)
    for take in plan(0, 20, SECONDS):
        lengths[take.label].append(take.seconds)
    first = lengths["chirp"]
    assert all(sorted(other) == sorted(first) for other in lengths.values())
    assert len({tuple(other) for other in lengths.values()}) == len(SOUNDS)


def test_the_broken_and_the_silent_file(demo):
    with pytest.raises(AudioError, match=r"^not readable as audio: "):
        decode(demo / BROKEN, 16000)
    assert is_silent(decode(demo / SILENT, 16000))


@pytest.mark.parametrize("seed", range(20))
def test_the_broken_file_is_broken_for_any_seed(seed, tmp_path):
    for name in (BROKEN, SILENT):
        (tmp_path / name).parent.mkdir()
    write_extras(seed, tmp_path)
    with pytest.raises(AudioError):
        probe(tmp_path / BROKEN)


def test_levels_leave_room_and_are_heard(demo):
    for path in demo.glob("*/site-?_??.*"):
        peak = np.abs(soundfile.read(path)[0]).max()
        assert 0.005 < peak < 1


def test_a_finished_set_is_left_alone(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert synthesize(demo, seed=3, per_class=5) == 32
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    assert json.loads((demo / ".demo.json").read_text()) == {"seed": 3, "per_class": 5}


def test_a_killed_synthesis_is_done_again(tmp_path):
    synthesize(tmp_path / "demo", seed=5, per_class=1)
    whole = digests(tmp_path / "demo")
    (tmp_path / "demo" / ".demo.json").unlink()
    torn = next((tmp_path / "demo" / "siren").iterdir())
    torn.write_bytes(torn.read_bytes()[:1000])
    next((tmp_path / "demo" / "vowel").iterdir()).unlink()
    synthesize(tmp_path / "demo", seed=5, per_class=1)
    assert digests(tmp_path / "demo") == whole


def test_a_full_disk_is_named(tmp_path):
    synthesize(tmp_path / "demo", seed=5, per_class=1)
    (tmp_path / "demo" / ".demo.json").unlink()
    first = next((tmp_path / "demo" / "vowel").iterdir())
    first.unlink()
    first.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        synthesize(tmp_path / "demo", seed=5, per_class=1)


def test_a_folder_of_somebody_else_is_refused_untouched(demo, tmp_path):
    (tmp_path / "README.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, seed in ((tmp_path, 0), (tmp_path / "file", 0), (demo, 4)):
        before = digests(out)
        with pytest.raises(UserError, match="give a new folder"):
            synthesize(out, seed=seed, per_class=5)
        assert digests(out) == before
    for seed, per_class in ((-1, 5), (0, 0)):
        with pytest.raises(UserError, match="at least"):
            synthesize(tmp_path / "new", seed=seed, per_class=per_class)


def ridge(wave):
    """The strongest frequency of every frame, in Hz."""
    hz, _, spectrum = stft(wave, RATE, nperseg=4096)
    return hz[np.abs(spectrum[:, 2:-2]).argmax(axis=0)]


@pytest.mark.parametrize("seed", range(5))
def test_a_siren_has_two_tones(seed):
    track = np.log2(ridge(SOUNDS["siren"](np.random.default_rng(seed), 4 * RATE)))
    low, high = np.quantile(track, (0.1, 0.9))
    assert np.log2(1.1) < high - low < np.log2(1.7)
    near = np.minimum(np.abs(track - low), np.abs(track - high)) < 0.1
    assert near.mean() > 0.75


@pytest.mark.parametrize("seed", range(5))
def test_a_chirp_sweeps_over_an_octave_in_one_direction(seed):
    track = np.log2(ridge(SOUNDS["chirp"](np.random.default_rng(seed), 4 * RATE)))
    assert np.ptp(track) > 0.8
    steps = np.diff(track)
    steps = steps[(np.abs(steps) > 0.005) & (np.abs(steps) < 0.4)]
    assert max((steps > 0).mean(), (steps < 0).mean()) > 0.9


@pytest.mark.parametrize("label", SOUNDS)
def test_every_sound_lasts_and_is_finite(label):
    wave = SOUNDS[label](np.random.default_rng(0), 2 * RATE)
    assert wave.shape == (2 * RATE,) and np.isfinite(wave).all()
    assert (np.abs(wave.reshape(4, -1)).max(axis=1) > 0).all()


def test_demo_here_names_a_place_elsewhere(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shards.sources.demo.synthesize", lambda *words, **more: 1)
    assert main(["demo", "."]) == 0
    assert f"build . {tmp_path}-shards " in capsys.readouterr().out

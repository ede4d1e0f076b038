"""A shard set as written: the right values, where the index says, as plain tools read them."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import xxhash
from conftest import (
    BESIDE_TARS,
    PER_CLASS,
    RATE,
    TONES,
    build_tones,
    lines,
    read_plainly,
    write_tone,
)

from shards.index import ROW, SPLITS, open_set
from shards.tar import BLOCK, BUFFER, Tar, tar_header


def test_set_is_as_told(tone_set: Path) -> None:
    names = {f.name for f in tone_set.iterdir()}
    shards = {name for name in names if name.startswith("samples-")}
    assert len(shards) >= 3 and names == shards | BESIDE_TARS
    info = open_set(tone_set).info
    segments = PER_CLASS // 2 * 3  # a pair is a recording of one segment and one of two
    assert info["classes"] == sorted(TONES) and info["folds"] == ["1", "2", "3", "4"]
    assert (info["recordings"], info["groups"], info["rejected"]) == (36, 18, 0)
    assert info["samples"] == 3 * segments == sum(x["samples"] for x in info["shards"])
    assert info["hours"] == pytest.approx(3 * segments / 3600)
    assert info["shape"] == [32, 63]  # ceil(8000 / 128)
    assert info["counts"]["class"]["low"] == {"recordings": PER_CLASS, "segments": segments}
    cells = json.loads((tone_set / "balance.json").read_text())
    assert sum(x["segments"] for x in cells) == 3 * segments
    assert sum(x["groups"] for x in cells) == 18  # no group is in two cells
    assert (tone_set / "rejected.csv").read_text() == "path,reason\n"


def test_webdataset_reads_every_sample(tone_set: Path) -> None:
    shard_set = open_set(tone_set)
    samples, recordings = read_plainly(tone_set), lines(tone_set)
    assert len(samples) == len(shard_set.index) == shard_set.info["samples"]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for row, sample in zip(shard_set.index, samples, strict=True):
        with open(shard_set.shard_paths[row["shard"]], "rb") as tar:
            tar.seek(row["offset"])
            payload = tar.read(2 * 32 * 63)
        assert sample["npy"].dtype == np.float16 and sample["npy"].tobytes() == payload
        about, recording = sample["json"], recordings[row["recording"]]
        assert about["recording"] == recording["path"] and about["group"] == recording["group"]
        assert about["class"] == shard_set.info["classes"][row["label"]] == recording["label"]
        assert about["label"] == row["label"] and about["start"] == row["start"]
        assert about["fold"] == shard_set.folds[row["fold"]] == recording["fold"]
        assert about["split"] == SPLITS[row["split"]] == recording["split"]


def test_tones_lie_in_their_bands(tone_set: Path) -> None:
    edges = librosa.mel_frequencies(34, fmin=0, fmax=RATE / 2)
    for sample in read_plainly(tone_set):
        hertz = TONES[sample["json"]["class"]]
        if hertz is not None:
            band = int(sample["npy"].astype(np.float64).mean(axis=1).argmax())
            assert edges[band] < hertz < edges[band + 2]


def test_values_are_librosas(tones: Path, tone_set: Path) -> None:
    for sample in read_plainly(tone_set)[:6]:
        wave, _ = soundfile.read(tones / sample["json"]["recording"])
        first = round(sample["json"]["start"] * RATE)
        power = librosa.feature.melspectrogram(
            y=wave[first : first + RATE], sr=RATE, n_fft=512, hop_length=128, n_mels=32
        )
        expected = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)[:, :63]
        np.testing.assert_allclose(sample["npy"], expected, atol=0.05)


def test_stats_are_sums_of_what_is_stored(tone_set: Path) -> None:
    shard_set = open_set(tone_set)
    expected = np.zeros((3, 4, 3, 3, 32))
    for row, sample in zip(shard_set.index, read_plainly(tone_set), strict=True):
        values = sample["npy"].astype(np.float64)
        cell = expected[row["split"], row["fold"], row["label"]]
        cell += [np.full(32, values.shape[1]), values.sum(axis=1), (values**2).sum(axis=1)]
    np.testing.assert_allclose(shard_set.stats, expected, rtol=1e-12)


def test_nothing_is_on_two_sides(tone_set: Path) -> None:
    sides: dict[str, set[tuple[str, str]]] = {}
    for line in lines(tone_set):
        sides.setdefault(line["group"], set()).add((line["fold"], line["split"]))
    assert len(sides) == 18 and all(len(found) == 1 for found in sides.values())


def test_index_is_a_plain_npy_and_recordings_carry_hashes(tones: Path, tone_set: Path) -> None:
    index = np.load(tone_set / "index.npy")
    assert index.dtype == ROW and (np.diff(index["recording"].astype(int)) >= 0).all()
    counted = np.bincount(index["recording"])
    for line, segments in zip(lines(tone_set), counted, strict=True):
        content = (tones / line["path"]).read_bytes()
        assert line["xxh128"] == xxhash.xxh3_128_hexdigest(content)
        assert line["segments"] == segments == line["seconds"]
        assert (line["sample_rate"], line["channels"]) == (RATE, 1)


def test_odd_names(tmp_path: Path) -> None:
    names = [
        "a.v2.wav",
        "a b.wav",
        "-rf.wav",
        'it\'s "q".wav',
        "ünïcødé 音.wav",
        "x" * 200 + ".wav",
    ]
    names += ["a..wav", "音.wav", "a,b\n.wav", ".hidden.wav"]
    for label in ("001 - Ümlaut. & co", "-x"):
        for n, name in enumerate(names):
            write_tone(tmp_path / "audio" / label / name, 440.0, seed=n)
    words = {"group_from": None, "folds": 2}
    build_tones(tmp_path / "audio", tmp_path / "set", **words)
    samples = read_plainly(tmp_path / "set")
    found = {(s["json"]["class"], s["json"]["recording"].rpartition("/")[2]) for s in samples}
    visible = [name for name in names if not name.startswith(".")]
    assert found == {(label, n) for label in ("001 - Ümlaut. & co", "-x") for n in visible}
    assert len({s["__key__"] for s in samples}) == len(samples)
    for sample in samples:
        key = sample["__key__"].rpartition("/")[2]
        assert key.isascii() and key.replace("-", "").replace("_", "").isalnum()
        assert not key.startswith("-") and len(key) <= 60 + 1 + 7 + 1 + 4
    assert open_set(tmp_path / "set").class_names == ["Ümlaut. & co", "-x"]


def test_stereo_and_another_rate(tmp_path: Path) -> None:
    write_tone(tmp_path / "mono.wav", 440.0, rate=22050)
    wave, rate = soundfile.read(tmp_path / "mono.wav")
    for label in "ab":
        (tmp_path / "audio" / label).mkdir(parents=True)
        for n in range(2):
            stereo = np.stack([wave, wave], axis=1)
            soundfile.write(tmp_path / "audio" / label / f"{n}.flac", stereo, rate)
    build_tones(tmp_path / "audio", tmp_path / "set", folds=2, group_from=None)
    edges = librosa.mel_frequencies(34, fmin=0, fmax=RATE / 2)
    for sample in read_plainly(tmp_path / "set"):
        band = sample["npy"].astype(np.float64).mean(axis=1).argmax()
        assert edges[band] < 440 < edges[band + 2]
    assert {(x["channels"], x["sample_rate"]) for x in lines(tmp_path / "set")} == {(2, 22050)}


@pytest.mark.parametrize(("name", "size"), [("a-0000001-0000.npy", 0), ("x" * 99, 8**11 - 1)])
def test_a_header_is_tarfiles(name: str, size: int) -> None:
    about = tarfile.TarInfo(name)
    about.size = size
    assert tar_header(name, size) == about.tobuf(tarfile.USTAR_FORMAT)


def test_a_tar_comes_to_its_file_in_whole_buffers(tmp_path: Path) -> None:
    written: list[int] = []

    class Noted(io.FileIO):
        def write(self, data) -> int:  # type: ignore[no-untyped-def,override]
            written.append(len(data))
            return super().write(data)

    blocks = [bytes([n]) * size for n, size in enumerate((41_472, 5 * BUFFER + 7, 0, 3, BUFFER))]
    with io.BufferedWriter(Noted(tmp_path / "a.tar", "w"), BUFFER) as file:
        tar = Tar(file)
        for block in blocks:
            tar.put(block)
        tar.finish()
    content = b"".join(blocks) + bytes(2 * BLOCK)
    assert (tmp_path / "a.tar").read_bytes() == content and tar.size == len(content)
    assert tar.digest.digest() == hashlib.sha256(content).digest()
    *whole, rest = written
    assert set(whole) == {BUFFER} and rest == len(content) % BUFFER

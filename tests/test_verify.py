"""Every kind of damage is found, and named down to the sample where it can be."""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import UserError
from shards.index import file_entry, open_set
from shards.seal import seal
from shards.verify import verify


@pytest.fixture
def copy(tone_set: Path, tmp_path: Path) -> Path:
    """A shard set to be damaged."""
    return Path(shutil.copytree(tone_set, tmp_path / "set"))


def sign_again(folder: Path) -> None:
    """Make sizes and SHA-256 in dataset.json fit, as a wrong program and not a bad disk would."""
    info = json.loads((folder / "dataset.json").read_text())
    for entry in info["shards"]:
        entry.update(file_entry(folder / entry["name"]))
    info["files"] = {name: file_entry(folder / name) for name in info["files"]}
    write_sealed(folder, info)


def write_sealed(folder: Path, info: dict[str, Any]) -> None:
    (folder / "dataset.json").write_bytes(seal({k: info[k] for k in info if k != "sha256"}))


def poke(file: Path, offset: int, content: bytes) -> None:
    with open(file, "r+b") as out:
        out.seek(offset)
        out.write(content)


def payload(folder: Path, row: int) -> tuple[Path, int, str]:
    """The tar of a sample, where its values begin, and the recording that it was cut from."""
    shard_set = open_set(folder)
    found = shard_set.index[row]
    recording = list(shard_set.recordings())[found["recording"]]["path"]
    return shard_set.shard_paths[found["shard"]], int(found["offset"]), recording


def test_a_sound_set_has_no_fault(tone_set: Path) -> None:
    assert verify(str(tone_set)) == []


@pytest.mark.parametrize("signed", [False, True])
def test_one_changed_byte_names_the_sample(copy: Path, signed: bool) -> None:
    tar, offset, recording = payload(copy, 5)
    before = tar.read_bytes()[offset + 7]
    poke(tar, offset + 7, bytes([before ^ 1]))
    if signed:
        sign_again(copy)
    faults = verify(str(copy))
    assert len(faults) == (1 if signed else 2)
    assert signed or re.match(rf"{tar.name}: SHA-256", faults[0])
    stem = Path(recording).stem
    assert re.match(
        rf"{tar.name}: sample {stem}-\d{{7}}-\d{{4}} of '{recording}': array differs", faults[-1]
    )


def test_values_that_are_not_finite(copy: Path) -> None:
    tar, offset, _ = payload(copy, 0)
    poke(tar, offset, np.array([np.inf, np.nan], "<f2").tobytes())
    assert any("2 values are not finite" in fault for fault in verify(str(copy)))


def test_missing_short_and_torn_shards(copy: Path) -> None:
    first, second, third = open_set(copy).shard_paths[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    cut = third.stat().st_size // 512 // 2 * 512
    third.write_bytes(third.read_bytes()[:cut])
    faults = verify(str(copy))
    assert f"{first.name}: missing" in faults
    for name in (second.name, third.name):
        assert any(re.match(rf"{name}: \d+ bytes, dataset.json says \d+", f) for f in faults)
    assert any(re.match(rf"{third.name}: sample .* where the tar has no sample", f) for f in faults)


def change_index(change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = np.load(folder / "index.npy")
        change(index)
        np.save(folder / "index.npy", index)

    return damage


def set_in(column: str, value: float) -> Callable[[Path], None]:
    def change(index: np.ndarray) -> None:
        index[column][3] = value

    return change_index(change)


def drop_a_line(folder: Path) -> None:
    file = folder / "recordings.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def double_stats(folder: Path) -> None:
    np.save(folder / "stats.npy", 2 * np.load(folder / "stats.npy"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_in("label", 3), "label 3 in row 3, has to be below 3"),
        (set_in("label", -1), "label -1 in row 3"),
        (set_in("fold", 4), "fold 4 in row 3, has to be below 4"),
        (set_in("split", 3), "split 3 in row 3"),
        (set_in("recording", 36), "recording 36 in row 3"),
        (set_in("shard", 99), "shard 99 in row 3"),
        (set_in("offset", 1), "where the tar has no sample"),
        (set_in("xxh3", 1), "differs from its XXH3"),
        (set_in("start", 7.0), "its JSON and its row of index.npy differ"),
        (drop_a_line, "recordings.jsonl lines: 35, dataset.json says 36"),
        (double_stats, "stats.npy frames: 6804, dataset.json says 3402"),
    ],
)
def test_wrong_numbers(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    names = ("index.npy", "recordings.jsonl", "stats.npy")
    assert any(fault.startswith(names) for fault in verify(str(copy)))  # not as it was written
    sign_again(copy)
    assert any(message in fault for fault in verify(str(copy)))


def test_label_of_another_class(copy: Path) -> None:
    index = np.load(copy / "index.npy")
    set_in("label", (index["label"][3] + 1) % 3)(copy)
    sign_again(copy)
    faults = verify(str(copy))
    assert any("label counts differ" in fault for fault in faults)
    assert any("its JSON and its row" in fault for fault in faults)


def test_a_shard_with_many_faults_is_cut_short(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.verify.FAULTS_A_SHARD", 3)
    change_index(lambda index: index["xxh3"].fill(0))(copy)
    sign_again(copy)
    faults = verify(str(copy))
    shards = open_set(copy).info["shards"]
    assert len(faults) == 4 * len(shards)
    assert faults[3] == f"{shards[0]['name']}: {shards[0]['samples'] - 3} more faults"


def test_dataset_json_without_an_entry(copy: Path) -> None:
    info = json.loads((copy / "dataset.json").read_text())
    del info["shards"]
    write_sealed(copy, info)
    assert verify(str(copy)) == ["dataset.json: has no 'shards'"]


def test_no_shard_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard set"):
        verify(str(tmp_path))


def owners(tar: Path) -> list[tuple[int, str, str]]:
    """Where each sample of an intact tar ends, its key and its recording, as tarfile tells."""
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
        abouts = members[1::2]
        said = [json.load(archive.extractfile(m)) for m in abouts]  # type: ignore[arg-type]
        ends = [m.offset for m in members[2::2]] + [tar.stat().st_size - 1024]
    keys = [m.name.removesuffix(".json") for m in abouts]
    return [(e, k, x["recording"]) for e, k, x in zip(ends, keys, said, strict=True)]


def test_every_flipped_byte_is_found_and_named(copy: Path) -> None:
    random = np.random.default_rng(0)
    for file in sorted(x for x in copy.iterdir() if x.suffix != ".png"):  # a picture is no data
        before = file.read_bytes()
        samples = owners(file) if file.suffix == ".tar" else []
        # half of the flips in a tar into its headers and JSON, which are a tenth of its bytes
        thin = np.flatnonzero(np.arange(len(before)) % 5120 < 1536) if samples else []
        for n in range(26):
            at = int(random.choice(thin) if n % 2 and samples else random.integers(len(before)))
            poke(file, at, bytes([before[at] ^ int(random.integers(1, 256))]))
            faults = verify(str(copy))
            assert any(fault.startswith(f"{file.name}: ") for fault in faults), (file.name, at)
            owner = next((x for x in samples if at < x[0]), None)
            if owner:
                named = f"{file.name}: sample {owner[1]} of '{owner[2]}': "
                assert any(fault.startswith(named) for fault in faults), (file.name, at, faults)
            poke(file, at, before[at : at + 1])
    assert verify(str(copy)) == []
    assert len(list(copy.iterdir())) * 26 >= 200


def test_a_cut_tar_names_the_samples_that_are_lost(copy: Path) -> None:
    tar = open_set(copy).shard_paths[0]
    samples, size = owners(tar), tar.stat().st_size
    for length in (size - 1, size - 1024, size // 2, 512, 0):
        os.truncate(tar, length)
        faults = verify(str(copy))
        assert faults[0] == f"{tar.name}: {length} bytes, dataset.json says {size}"
        lost = {recording for end, _, recording in samples if end > length}
        assert all(any(f"of {x!r}: " in fault for fault in faults) for x in lost)
        with pytest.raises(UserError, match=f"{tar.name}: {length} bytes"):
            open_set(copy)


def test_a_stray_shard_is_named(copy: Path) -> None:
    shutil.copy(copy / "samples-000000.tar", copy / "samples-000009.tar")
    assert [f.partition(":")[0] for f in verify(str(copy))] == ["samples-000009.tar"]


def test_changed_audio_is_named(copy: Path, tones: Path, tmp_path: Path) -> None:
    audio = Path(shutil.copytree(tones, tmp_path / "audio"))
    assert verify(str(copy), str(audio)) == []
    changed, gone = audio / "low" / "low-g0-0.wav", audio / "high" / "high-g1-3.wav"
    poke(changed, 1000, b"\xaa\x55")
    gone.unlink()
    assert sorted(verify(str(copy), str(audio))) == [
        f"recording 'high/high-g1-3.wav': missing below {audio}",
        "recording 'low/low-g0-0.wav': its audio changed since the set was built",
    ]

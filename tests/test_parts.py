"""`--part=I/N` on one folder or many, then `merge`: the bytes of one build, or a clear word."""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SETTINGS, build_tones, hashes, write_tone
from processes import on_ranks

from shards import workshop as workshop_module
from shards.__main__ import main
from shards.errors import UserError
from shards.index import open_set
from shards.merge import merge
from shards.output import locked
from shards.part import Part, parse_part

PARTS = ("0/3", "1/3", "2/3")
WORDS: dict[str, Any] = {"split": "0.6,0.2,0.2"}  # as tone_set is built
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]
FLAGS += ["--folds=4", "--split=0.6,0.2,0.2", "--shard_size=30KB"]


@pytest.fixture(scope="module")
def whole(tones: Path) -> dict[str, str]:
    """The hashes of the set built at once, in eight shards."""
    out = tones.parent / "whole"
    build_tones(tones, out, shard_size="30KB", **WORDS)
    assert len(open_set(out).info["shards"]) >= 6
    return hashes(out)


def part(tones: Path, out: Path, text: str, **words: Any) -> str:
    return build_tones(tones, out, **{**WORDS, "shard_size": "30KB", "part": text, **words})


def test_three_processes_at_once(tones, tmp_path, whole, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("shards.build.warm_up", lambda: None)  # starts processes, its parent's here
        said = on_ranks(3, lambda: part(tones, out, PARTS[int(os.environ["RANK"])], file_timeout=0))
    assert all("shards" in text for text in said), said
    assert not (out / "dataset.json").exists()  # no part finishes the set
    assert any("and so is every shard" in text for text in said)
    assert main(["merge", str(out)]) == 0
    assert hashes(out) == whole
    assert "complete already" in part(tones, out, "1/3")
    assert hashes(out) == whole


def test_folders_copied_together(tones, tmp_path, whole, capsys):
    out = tmp_path / "all"
    for n, text in enumerate(PARTS):
        part(tones, tmp_path / f"machine-{n}", text)
        shutil.copytree(tmp_path / f"machine-{n}", out, dirs_exist_ok=True)
    torn = shutil.move(out / "samples-000001.tar", tmp_path)
    assert main(["merge", str(out)]) == 2
    assert f"python -m shards build {tones} {out} " in capsys.readouterr().err
    shutil.move(torn, out)
    merge(str(out))
    assert hashes(out) == whole


def test_merge_names_what_is_missing_and_how_to_make_it(tones, tmp_path, whole, capsys):
    out = tmp_path / "a set"
    said = part(tones, out, "1/3")
    assert re.search(r"part 1/3: done; \d+ of \d+ shards are not here yet", said)
    assert main(["merge", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "shards are missing (0, 2, 3, 5" in error
    assert error.rstrip().endswith("(and the same with --part=2/3)")
    command = shlex.split(error.partition("to make them: ")[2].partition(" (and")[0])
    assert command[:3] == ["python", "-m", "shards"] and command[-1] == "--part=0/3"
    assert main(command[3:]) == 0
    assert main([*command[3:-1], "--part=2/3"]) == 0
    assert main(["merge", str(out)]) == 0
    assert hashes(out) == whole


def test_a_whole_build_goes_on_from_parts(tones, tmp_path, whole):
    out = tmp_path / "set"
    part(tones, out, "2/3")
    first = (out / "samples-000002.tar").stat().st_ino
    build_tones(tones, out, shard_size="30KB", **WORDS)
    assert hashes(out) == whole and (out / "samples-000002.tar").stat().st_ino == first


def test_parts_of_other_settings_or_audio_or_versions(tones, tmp_path, monkeypatch):
    out, more = tmp_path / "set", Path(shutil.copytree(tones, tmp_path / "more"))
    write_tone(more / "low" / "low-g9-0.wav", 440.0)
    part(tones, out, "0/2")
    before = sorted(file for file in out.rglob("*") if file.is_file())
    with pytest.raises(
        UserError, match=r"n_mels: 32 there, 16 asked.*fmin: 0\.0 there, 5\.0 asked"
    ):
        part(tones, out, "1/2", n_mels=16, fmin=5.0)
    with pytest.raises(UserError, match="other audio files"):
        part(more, out, "1/2")
    with monkeypatch.context() as patch:
        patch.setattr(workshop_module, "__version__", "9.9")
        with pytest.raises(UserError, match=r"wavefold: \S+ there, 9.9 asked"):
            part(tones, out, "1/2")
    assert sorted(file for file in out.rglob("*") if file.is_file()) == before
    part(tones, tmp_path / "other", "1/2", fmin=5.0)
    shutil.copytree(tmp_path / "other", out, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"fmin: 5\.0 there, 0\.0 asked"):
        merge(str(out))


def test_two_parts_that_begin_at_the_same_moment_agree_or_stop(tones, tmp_path, monkeypatch):
    out, agree = tmp_path / "set", workshop_module.agree

    def slow(folder: Path, mine: Any) -> None:
        """The first look finds nothing; then the other part leaves its promise."""
        monkeypatch.setattr(workshop_module, "agree", agree)
        other = json.loads(json.dumps(mine)) | {"settings": mine["settings"] | {"n_mels": 7}}
        Part(1, 2).folder(folder).mkdir(parents=True)
        (Part(1, 2).folder(folder) / "plan.json").write_text(json.dumps(other))

    monkeypatch.setattr(workshop_module, "agree", slow)
    with pytest.raises(UserError, match="n_mels: 7 there, 32 asked"):
        part(tones, out, "0/2")
    assert not (Part(0, 2).folder(out) / "plan.json").exists()


def test_locks(tones: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    part(tones, out, "0/2")
    with locked(out, shared=True), locked(Part(0, 2).folder(out)):
        with pytest.raises(UserError, match="part-0-of-2: another build"):
            part(tones, out, "0/2")
        for start in (lambda: build_tones(tones, out, shard_size="30KB", **WORDS),
                      lambda: merge(str(out))):  # fmt: skip
            with pytest.raises(UserError, match="another build"):
                start()
        part(tones, out, "1/2")
    with locked(out), pytest.raises(UserError, match="another build"):
        part(tones, out, "1/2")


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "1/0", "a/b", "0/3/1", "1.0/3"])
def test_no_such_part(text: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"--part={text}: ")):
        part(tones, tmp_path / "set", text)
    assert not (tmp_path / "set").exists()


def test_every_shard_is_in_one_part() -> None:
    for n in (1, 2, 3, 7):
        parts = [parse_part(f"{i}/{n}") for i in range(n)]
        assert all(sum(part.has(shard) for part in parts) == 1 for shard in range(20))


def test_words_that_exclude_each_other(tones: Path, tmp_path: Path) -> None:
    for word in ({"part": "0/2"}, {"append": True}):
        with pytest.raises(UserError, match="exclude each other"):
            build_tones(tones, tmp_path / "set", overwrite=True, **word)
    with pytest.raises(UserError, match="no parts of a build"):
        merge(str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_order_of_the_file_system(tones, tmp_path, whole, monkeypatch):
    scandir = os.scandir

    @contextmanager
    def shuffled(folder: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield iter(sorted(entries, key=lambda entry: hashlib.md5(os.fsencode(entry)).digest()))

    def anyhow(folder: Any = ".") -> Any:
        return shuffled(folder) if str(folder).startswith(str(tones)) else scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", anyhow)
        build_tones(tones, tmp_path / "set", shard_size="30KB", **WORDS)
    assert hashes(tmp_path / "set") == whole

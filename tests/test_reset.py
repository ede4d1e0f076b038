"""`reset OUT`: what a build wrote goes, and nothing else, ever."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import build_tones, hashes

from shards import output
from shards.__main__ import main
from shards.errors import UserError


@pytest.fixture
def copy(tone_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tone_set, tmp_path / "set"))


def test_only_what_build_wrote_goes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = {"shown.png", "samples-notes.txt", "recording.wav", "samples-000000.tar.bak"}
    for name in mine:
        (copy / name).write_text("mine")
    (copy / "show.png").write_text("what `show` drew")
    (copy / "audio").mkdir()
    (copy / "audio" / "a.wav").write_text("audio")
    assert main(["reset", str(copy), "--yes"]) == 0
    assert {f.name for f in copy.iterdir()} == {*mine, "audio"}
    assert (copy / "audio" / "a.wav").read_text() == "audio"
    assert capsys.readouterr().out == f"removed: the shard set {copy}\n"


def test_a_folder_of_nothing_else_goes_too(copy: Path) -> None:
    output.reset(copy)
    assert not copy.exists()


def test_a_link_and_the_current_folder_are_emptied(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = shutil.copytree(copy, tmp_path / "again")
    (tmp_path / "link").symlink_to(copy)
    assert main(["reset", str(tmp_path / "link"), "--yes"]) == 0
    monkeypatch.chdir(again)
    assert main(["reset", ".", "--yes"]) == 0
    assert list((tmp_path / "link").iterdir()) == list(again.iterdir()) == []


def test_an_unfinished_build_can_be_reset(tmp_path: Path, small: Path) -> None:
    out = tmp_path / "set"
    build_tones(small, out, folds=2)
    (out / "dataset.json").unlink()
    (out / ".build").mkdir()
    output.reset(out)
    assert not out.exists()


def kill_at_a_tar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a reset end before it removes its first tar."""
    unlink = os.unlink

    def unlink_or_die(path: str) -> None:
        if os.fspath(path).endswith(".tar"):
            raise InterruptedError
        unlink(path)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(os, "unlink", unlink_or_die)
        output.reset(folder)
    assert not (folder / "dataset.json").exists() and list(folder.glob("*.tar"))


def test_a_reset_that_was_killed_can_be_started_again(copy, monkeypatch):
    kill_at_a_tar(copy, monkeypatch)
    assert len(list(copy.glob("*.tar"))) > 1
    output.reset(copy)
    assert not copy.exists()


def test_a_build_leaves_nothing_of_a_killed_reset(small, tmp_path, monkeypatch):
    build_tones(small, tmp_path / "set", folds=2, shard_size="10KB")
    build_tones(small, tmp_path / "fresh", folds=2, shard_size="1GB")
    kill_at_a_tar(tmp_path / "set", monkeypatch)
    assert len(list((tmp_path / "set").glob("*.tar"))) > 1
    build_tones(small, tmp_path / "set", folds=2, shard_size="1GB")
    assert hashes(tmp_path / "set") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("name", ["notes.txt", "dataset.json", ".build/release/a.o", ".build"])
def test_other_folders_are_refused(small, tmp_path, name, capsys):
    out = tmp_path / "swift"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(json.dumps({"format": 1}))
    (out / "index.npy").write_text("somebody's")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert main(["reset", str(out), "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and no shard set"):
            build_tones(small, out, folds=2, overwrite=overwrite)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_set_whose_first_file_is_damaged_can_go(copy: Path) -> None:
    (copy / "samples-000009.tar").mkdir()  # not what a build made
    (copy / "dataset.json").write_bytes((copy / "dataset.json").read_bytes()[:100])
    output.reset(copy)
    assert [file.name for file in copy.iterdir()] == ["samples-000009.tar"]


def test_it_asks_first(copy, monkeypatch, capsys):
    before = hashes(copy)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["reset", str(copy)]) == 2  # nobody is there to be asked
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "\n", "n\n", "maybe\n"):  # the first is Ctrl-D
        monkeypatch.setattr("sys.stdin.readline", lambda answer=answer: answer)
        assert main(["reset", str(copy)]) == 0
        assert hashes(copy) == before
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n")
    assert main(["reset", str(copy)]) == 0
    assert not copy.exists()


def test_not_under_a_build(copy: Path) -> None:
    before = hashes(copy)
    with output.locked(copy), pytest.raises(UserError, match="another build"):
        output.reset(copy)
    assert hashes(copy) == before

"""A shard set on the node's own disk: copied once, checked, used again, done without if need be."""

import logging
import multiprocessing
import shutil
import time

import pytest
from conftest import hashes
from processes import forked
from runs import config_file

from shards import stage
from shards.errors import UserError
from shards.index import open_set
from shards.stage import staged

pytestmark = pytest.mark.usefixtures("no_pictures")

FORK = multiprocessing.get_context("fork")


def test_the_copy_is_the_set_and_is_made_once(tone_set, tmp_path):
    """Of six processes that want it at the same time one copies it."""
    count, found, gate = FORK.Value("i", 0), FORK.Queue(), FORK.Barrier(6)
    beaten = FORK.Array("i", 6)  # of a training that nobody may think hangs
    copy_set = stage.copy_set

    def counted(*words):
        with count.get_lock():
            count.value += 1
        while sum(map(bool, beaten)) < 5:  # those that wait
            time.sleep(0.01)
        copy_set(*words)

    def want(number):
        def beat():
            beaten[number] += 1

        gate.wait(20)
        found.put(staged(tone_set, tmp_path / "disk", beat))

    stage.copy_set = counted
    try:
        processes = [FORK.Process(target=want, args=(n,), daemon=True) for n in range(6)]
        for process in processes:
            process.start()
        (copy,) = {found.get(timeout=30) for _ in processes}
        for process in processes:
            process.join(10)
    finally:
        stage.copy_set = copy_set
    assert count.value == 1 and copy != tone_set and all(beaten)
    there, here = hashes(tone_set), hashes(copy)
    assert here.items() <= there.items() and "dataset.json" in here
    assert len(open_set(copy)) == len(open_set(tone_set))


def test_what_is_not_whole_is_copied_again(tone_set, tmp_path):
    copy = staged(tone_set, tmp_path)
    before = {file.name: file.stat().st_ino for file in copy.iterdir()}
    assert staged(tone_set, tmp_path) == copy
    assert before == {file.name: file.stat().st_ino for file in copy.iterdir()}
    next(copy.glob("*.tar")).unlink()  # as cleaners of /tmp do
    assert staged(tone_set, tmp_path) == copy and {*before} == {f.name for f in copy.iterdir()}
    (copy / "dataset.json").unlink()  # as a kill in the middle leaves it
    assert staged(tone_set, tmp_path) == copy and {*before} == {f.name for f in copy.iterdir()}


def test_a_shard_of_other_bytes_is_refused(tone_set, tmp_path):
    bad = shutil.copytree(tone_set, tmp_path / "set")
    shard = next(bad.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"{shard.name}: its SHA-256 is not"):
        staged(bad, tmp_path / "disk")
    assert not list((tmp_path / "disk").glob("wavefold-*/*"))


def test_without_room_training_goes_on_from_where_it_lies(tone_set, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(stage, "SPARE", 1 << 62)
    assert staged(tone_set, tmp_path / "disk") == tone_set
    assert f"find no room there; training goes on from {tone_set}" in caplog.text
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert staged(tone_set, tmp_path / "file") == tone_set
    assert "training goes on" in caplog.messages[-1] and caplog.text.count("\n") == 2


def test_a_training_reads_the_copy(tone_set, tmp_path, monkeypatch):
    source = shutil.copytree(tone_set, tmp_path / "set")
    train = {"epochs": 1, "max_steps": 2}
    file = config_file(tmp_path, source, data={"stage": "$NODE_DISK/x"}, train=train)
    code, said = forked(file, "--run.name=unset")
    assert code == 0 and "data.stage=$NODE_DISK/x: NODE_DISK is not set" in said
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    code, said = forked(file)
    assert code == 0 and f"on {tmp_path}/disk/x/wavefold-" in said

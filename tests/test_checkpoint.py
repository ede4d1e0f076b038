"""Checkpoints: written beside the training, checked, refused by name, and what may not change."""

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors import SafetensorError
from safetensors.torch import load_file
from savers import INFO, assert_equal, copied, make, state

from shards.errors import UserError
from toolkit import checkpoint
from toolkit import saver as saving
from toolkit.checkpoint import checkpoints, damage, prune, step_of


@pytest.fixture(autouse=True)
def accelerator_left_behind() -> Iterator[None]:
    """accelerate keeps its state in classes, where processes forked by other tests find it."""
    threads = torch.get_num_threads()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(threads)


def test_it_holds_what_was_when_it_was_asked_for_and_no_two_are_written_at_once(
    tmp_path, monkeypatch
):
    """The writer may not copy before a step waits for it, nor write before the next one is due."""
    take, save, at_once = saving.Snapshot.take, checkpoint.save_file, [0]
    waiting, go = threading.Event(), threading.Event()

    def slow_take(snapshot):
        assert waiting.wait(20)
        return take(snapshot)

    def slow_save(tensors, file, words):
        at_once.append(at_once[-1] + 1)
        assert go.wait(20)
        save(tensors, file, words)
        at_once.append(at_once[-1] - 1)

    saver, step = make(tmp_path, best_metric="loss")
    step()
    monkeypatch.setattr(saving.Snapshot, "take", slow_take)
    monkeypatch.setattr(checkpoint, "save_file", slow_save)
    before = copied(saver.strategy)
    with saver.strategy.averaged():
        assert_equal(saver.strategy.module.state_dict(), before["ema"])
    assert_equal(saver.strategy.module.state_dict(), before["model"])
    assert not torch.equal(before["model"]["weight"], before["ema"]["weight"])
    saver.save(state(1))
    threading.Timer(0.1, waiting.set).start()
    step()  # waits, or the copies would be of later weights
    assert waiting.is_set()
    step()
    later = copied(saver.strategy)
    assert saver.writing
    threading.Timer(0.1, go.set).start()
    saver.save(state(2))  # waits for the first one
    saver.close()
    assert max(at_once) == 1 and not torch.equal(
        before["model"]["weight"], later["model"]["weight"]
    )
    for number, groups in ((1, before), (2, later)):
        path = tmp_path / "checkpoints" / f"step-{number:08d}"
        assert not damage(path)
        for part, tensors in groups.items():
            assert_equal(load_file(path / f"{part}.safetensors"), tensors)


def test_a_full_disk_costs_a_line_and_leaves_what_was_there(tmp_path, monkeypatch, caplog):
    save, full = checkpoint.save_file, [False]

    def save_or_not(tensors, file, words):
        if full[0] and Path(file).name == "optimizer.safetensors":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, file, words)

    monkeypatch.setattr(checkpoint, "save_file", save_or_not)
    saver, step = make(tmp_path, best_metric="loss")
    losses = [3.0, 2.0, 2.5]
    for number in (1, 2, 3):
        step()
        full[0] = number == 2
        saver.save(state(number, *losses[:number]))
        saver._settle()
        if number == 2:
            best = copied(saver.strategy)["ema"]
            files = sorted(path.name for path in saver.folder.iterdir())
            assert files == ["latest", "step-00000001"] and not damage(saver.folder / files[1])
    saver.close()  # content: there was room again
    assert_equal(load_file(tmp_path / "best.safetensors"), best)  # also those of step 2
    full[0] = True
    saver.save(state(4, *losses, 2.4))
    with pytest.raises(OSError) as error:
        saver.close()
    assert error.value.errno == errno.ENOSPC
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" could not")[0] for line in lines] == [
        "the checkpoint of step 2", "the checkpoint of step 4",
    ]  # fmt: skip
    assert "No space left on device" in lines[0] and "\n" not in lines[0]


def test_where_the_newest_is_damaged_the_best_weights_before_it_come_back(tmp_path, caplog):
    saver, step = make(tmp_path, best_metric="loss")
    best, losses, held = tmp_path / "best.safetensors", [3.0, 2.0, 2.5, 1.0], {}
    for number in (1, 2, 3, 4):
        step()
        saver.save(state(number, *losses[:number]))
        saver._settle()
        held[number] = load_file(best)
    (saver.folder / "step-00000004/state.json").write_text("{")
    saver, _ = make(tmp_path, best_metric="loss")
    found = saver.restore()
    assert found["step"] == 3  # and checkpoint 2, of the best weights until then, was pruned
    saver.catch_up(found)
    assert_equal(load_file(best), held[2])
    best.write_bytes((saver.folder / "step-00000003/ema.safetensors").read_bytes())
    (saver.folder / "best-before.safetensors").unlink()
    caplog.clear()
    saver.catch_up(found)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "best.safetensors is not of step 2, the best so far, whose weights are gone" in line


@pytest.fixture
def two(tmp_path):
    """A run with checkpoints of steps 1 and 2; what the model, optimiser and average were."""
    saver, step = make(tmp_path, best_metric="loss")
    for number in (1, 2):
        step()
        saver.save(state(number))
    saver.close()
    return tmp_path, copied(saver.strategy)


def test_model_optimiser_average_and_state_come_back(two):
    folder, last = two
    saver, _ = make(folder)
    assert saver.restore() == state(2)
    found = copied(saver.strategy)
    for part in ("model", "optimizer", "ema"):
        assert_equal(found[part], last[part])


FILES = ("model", "ema", "optimizer")


@pytest.mark.parametrize(
    "name", [*(f"{part}.safetensors" for part in FILES), "state.json", "manifest.json"]
)
def test_any_bit_flipped_or_byte_lost_is_found(two, name):
    file = two[0] / "checkpoints/step-00000002" / name
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 50)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        if name != "manifest.json" or json_differs(whole, bytes(data)):
            assert damage(file.parent), place
    file.write_bytes(whole[:-9])
    assert damage(file.parent)
    file.write_bytes(whole)
    assert damage(file.parent) is None
    file.unlink()
    assert name in damage(file.parent)


def json_differs(one: bytes, two: bytes) -> bool:
    """Whether they say different things: a flipped bit in white space may change nothing."""
    try:
        return json.loads(one) != json.loads(two)
    except ValueError:
        return True


def test_a_damaged_one_is_refused_by_name_and_the_one_before_is_taken(two, caplog):
    folder = two[0]
    newest = folder / "checkpoints/step-00000002"
    (newest / "ema.safetensors").write_bytes(b"torn")
    (folder / "checkpoints/.step-00000003.tmp").mkdir()
    (folder / "requeue").touch()
    assert make(folder)[0].restore()["step"] == 1
    assert len(caplog.records) == 1
    assert f"{newest} is damaged (ema.safetensors" in caplog.text
    assert not (folder / "requeue").exists()
    assert not (folder / "checkpoints/.step-00000003.tmp").exists()
    (folder / "checkpoints/step-00000001/state.json").unlink()
    with pytest.raises(UserError, match="no checkpoint is sound"):
        make(folder)[0].restore()


@pytest.mark.parametrize(
    "words, message",
    [
        ({"width": 5}, "model: bias is [2] there, [5] here, weight is [2, 3] there, [5, 3] here"),
        ({"info": INFO | {"classes": ["a", "c"]}}, "classes: a, b there, a, c here"),
        ({"info": INFO | {"samples": 5, "shards": [{"sha256": "4"}]}},
         "data: 9 samples in 2 shards there, 5 samples in 1 shards of other content here"),
        ({"info": INFO | {"files": {}}}, "data: other labels, parts or folds"),
        ({"weight": 2.0}, "order: other samples come; data.weights may have other values"),
    ],
)  # fmt: skip
def test_what_changed_is_said(two, words, message):
    with pytest.raises(UserError) as error:
        make(two[0], **words)[0].restore()
    assert message in str(error.value) and "--train.resume=never" in str(error.value)


def test_another_microbatch_is_said_in_one_line_and_goes_on(two, caplog):
    caplog.set_level("INFO")
    assert make(two[0], microbatch=2)[0].restore()["step"] == 2
    assert len(caplog.records) == 1 and "microbatch 4, now 2" in caplog.text


def test_must_go_on_from_a_checkpoint(tmp_path):
    assert make(tmp_path, resume="auto")[0].restore() == {}
    with pytest.raises(UserError, match="there is no checkpoint"):
        make(tmp_path, resume="must")[0].restore()


def test_the_last_ones_and_those_of_the_best_epochs_are_kept(tmp_path):
    saver, step = make(tmp_path, best_metric="loss", keep_last=2, keep_best=2)
    losses = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0]
    for number in range(1, 8):
        step()
        saver.save(state(number, *losses[:number]))
    saver.close()
    assert [step_of(path) for path in checkpoints(saver.folder)] == [2, 4, 6, 7]
    prune(saver.folder, 4, 1, kept={6})  # the training went on before 6 and 7
    assert [step_of(path) for path in checkpoints(saver.folder)] == [4]


def test_steps_minutes_and_ends_of_epochs(tmp_path, monkeypatch):
    saver, _ = make(tmp_path, save_minutes=3, save_every=10)
    begun = saving.time.monotonic()
    assert saver.wishes() == frozenset()
    monkeypatch.setattr(saving.time, "monotonic", lambda: begun + 181)
    assert saver.wishes() == {"save"}
    nothing = frozenset()
    assert not saver.due(9, False, nothing)
    assert saver.due(9, False, frozenset({"save"})) and not saver.stopping
    assert saver.due(10, False, nothing) and saver.due(9, True, nothing)
    assert saver.due(9, False, frozenset({"stop"})) and saver.stopping

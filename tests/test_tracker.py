"""W&B and TensorBoard for real, without a network; and trackers that fail, hang and lag."""

import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import on_ranks
from runs import configured

from shards.durable import sha256
from shards.errors import UserError
from toolkit import tracker
from toolkit.config import parse
from toolkit.loop import fit
from toolkit.schema import Config, TrackConfig
from toolkit.track import Metrics, open_run
from toolkit.world import World

KEY = "0123456789abcdef0123456789abcdef01234567"
HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and none of the user's own keys."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    return folder


def config(shards: Path | str = "", **track: Any) -> Config:
    train = {"log_every": 1, "save_every": 1, "keep_last": 9}
    return configured(shards, Path("runs"), train=train, track=track)


def history(folder: Path) -> list[dict[str, Any]]:
    """What `run.log` was given, from W&B's file: LevelDB's log format around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("*.wandb")
    data, place, whole, lines = file.read_bytes(), 7, b"", []
    while place < len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block, too short for a header
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            items = Record.FromString(whole).history.item
            lines.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            whole = b""
    return [line for line in lines if line]


def processes_with(text: str) -> list[int]:
    """Processes that have `text` in their environment, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_requeued_training_is_one_run_of_wandb(tone_set, working_folder, monkeypatch):
    """The second start finds no checkpoint of steps 3 and 4, as after a kill, and repeats them."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = working_folder / "runs/tones/fold-0"
    for steps in (4, 5):
        asked = config(tone_set, wandb="offline", tensorboard=True).to_dict()
        asked["train"]["max_steps"] = steps
        assert on_ranks(1, lambda: fit(parse(asked))["steps"]) == [steps]  # noqa: B023
        for step in (3, 4):
            shutil.rmtree(run / f"checkpoints/step-{step:08d}", ignore_errors=True)
    first, second = sorted(run.glob("wandb/offline-run-*"), key=lambda p: p.stat().st_mtime_ns)
    run_id = (run / "wandb_id.txt").read_text()
    assert {folder.name.rpartition("-")[2] for folder in (first, second)} == {run_id}
    logged = [[h for h in history(folder) if "train/loss" in h] for folder in (first, second)]
    assert [[h["step"] for h in lines] for lines in logged] == [[1, 2, 3, 4], [3, 4, 5]]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert list(losses) == [1, 2, 3, 4, 5]
    assert {h["step"]: h["train/loss"] for h in logged[0] + logged[1]} == losses
    scores = json.loads((run / "scores.json").read_text())
    last = {key: value for line in history(second) for key, value in line.items()}
    assert last["test/recording/accuracy"] == scores["recording"]["accuracy"]
    for name in ("curves", "confusion_matrix"):
        assert last[f"{name}/sha256"] == sha256(run / f"{name}.png")
    assert not (working_folder / "wandb").exists()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(losses)
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert set(events.Tags()["images"]) == {"confusion_matrix", "curves"}
    assert not any(KEY.encode() in f.read_bytes() for f in run.rglob("*") if f.is_file())


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[socket.socket]]]:
    """Accepts whatever connects, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield address, taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


def test_a_server_that_hangs_costs_the_limit_and_leaves_nothing(
    silent_server: tuple[str, list[socket.socket]],
    working_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address, taken = silent_server
    (working_folder / "wandb_api_key.txt").write_text(KEY + "\n")
    monkeypatch.setattr(sys, "argv", ["train.py", "a.yaml", f"--key={KEY}", KEY])
    asked = config(wandb="online")
    folder = open_run(asked, HERE)
    metrics = Metrics(folder, asked, 0, True)
    wait_for(lambda: taken)
    processes = processes_with(address)
    assert processes
    monkeypatch.setattr(tracker, "LIMIT", 0.5)
    for step in range(1, 4):
        metrics.write("train", step=step, loss=0.5)
        time.sleep(0.2)  # the limit passes while steps go on
    begun = time.monotonic()
    metrics.close()
    assert time.monotonic() - begun < 10  # W&B by itself takes more than a minute
    [warning] = warnings_of(caplog)
    assert "W&B is off from here on: no answer for 0.5 s" in warning
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    wait_for(lambda: not processes_with(address))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "environment.json" for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in caplog.text


class Broken:
    """A tracker whose call of some name raises, hangs until it is killed, or succeeds."""

    def __init__(self, raises: str = "", hangs: str = ""):
        self.raises, self.hangs = raises, hangs
        self.calls: list[str] = []
        self.killed, self.stuck = threading.Event(), False

    def do(self, name: str) -> None:
        self.calls.append(name)
        if name == self.raises:
            raise OSError(f"the network is gone, and the key was {KEY}")
        if name == self.hangs:
            self.stuck = True
            self.killed.wait()

    def start(self) -> None:
        self.do("start")

    def log(self, step: int, values: Any) -> None:
        self.do("log")

    def image(self, name: str, file: Path) -> None:
        self.do("image")

    def close(self, whole: bool) -> None:
        self.do("close")

    def kill(self) -> None:
        self.killed.set()


def use(broken: Broken) -> tracker.Aside:
    aside = tracker.Aside("Broken", broken)
    [aside.log(step, {}) for step in range(5)]
    aside.image("curves", Path("curves.png"))
    wait_for(lambda: aside.given_up or broken.stuck or len(broken.calls) == 7)
    tracker.close_all([aside], whole=True)
    aside.thread.join()
    return aside


@pytest.mark.parametrize("call", ["start", "log", "image", "close"])
@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_a_tracker_that_raises_or_hangs_is_off_with_one_warning(call, fault, monkeypatch, caplog):
    monkeypatch.setattr(tracker, "LIMIT", 0.3 if fault == "hangs" else 60.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    broken = Broken(**{fault: call})
    use(broken)
    [warning] = warnings_of(caplog)
    reason = "the network is gone, and the key was ***" if fault == "raises" else "within 0.3 s"
    assert reason in warning and KEY not in caplog.text
    assert broken.calls[-1] == call and broken.killed.is_set()


def test_a_sound_tracker_gets_every_call(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    use(broken)
    assert broken.calls == ["start", *["log"] * 5, "image", "close"]
    assert not warnings_of(caplog) and not broken.killed.is_set()


def test_a_tracker_that_lags_is_off(monkeypatch, caplog):
    monkeypatch.setattr(tracker, "WAITING", 3)
    use(Broken(hangs="start"))
    [warning] = warnings_of(caplog)
    assert "3 calls wait for it" in warning


def test_what_is_missing_is_said_before_the_run(working_folder, monkeypatch):
    with pytest.raises(UserError, match=r"track.wandb=online: no key; set WANDB_API_KEY"):
        open_run(config(wandb="online"), HERE)
    (working_folder / "wandb_api_key.txt").write_text(KEY)
    tracker.check_trackers(TrackConfig(wandb="online"))
    (working_folder / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(working_folder)])
    for name, value in (("wandb", "offline"), ("tensorboard", True)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(UserError, match=f"track.{name}={value}: {name} is not installed; pip"):
            open_run(config(**{name: value}), HERE)
    assert not (working_folder / "runs").exists()

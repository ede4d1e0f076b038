"""Weights of every epoch: kept, and pushed to a Hub of the tests' own that may fail or hang."""

import base64
import json
import statistics
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, forked
from runs import config_file, records
from safetensors.numpy import load_file, save_file

from shards.errors import UserError
from shards.index import open_set
from toolkit.__main__ import main
from toolkit.hub import HubConfig, Pusher, check_hub, epoch_file

pytestmark = pytest.mark.usefixtures("no_pictures")

TOKEN = "hf_secretsecretsecret"
REPO = "somebody/epochs"


class Hub(BaseHTTPRequestHandler):
    """What of the Hub's protocol a push needs; `server.files` is the repository."""

    def log_message(self, *words: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        server = self.server
        server.tokens.add(self.headers["Authorization"])
        if server.fault == "hangs":
            server.over.wait(20)
            return
        if server.fault:
            return self.answer(403, {"error": f"not for {self.headers['Authorization']}"})
        if self.path.endswith("/create"):
            server.made.append(json.loads(body))
            self.answer(200, {"url": f"http://{self.headers['Host']}/{REPO}"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": name, **how} for name in names]})
        else:
            assert "/commit/main" in self.path, self.path
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    server.files[value["path"]] = base64.b64decode(value["content"])
            self.answer(
                200, {"commitUrl": f"http://{self.headers['Host']}/{REPO}", "commitOid": "0" * 40}
            )

    def answer(self, status: int, values: dict[str, object]) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.tokens, server.made, server.fault = {}, set(), [], ""
        server.over = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # of whoever runs the tests
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def run_config(shards: Path, folder: Path) -> str:
    """A training of two epochs whose weights go to the Hub."""
    return config_file(
        folder, shards, run={"name": "r"}, data={"fold": 1}, hub={"repo": REPO, "timeout": 60},
        model={"filters": [4, 4, 4], "norm_batch": 16},
        train={"epochs": 2, "batch_size": 32, "keep_epochs": True},
    )  # fmt: skip


def test_each_epoch_of_a_fold_is_pushed(hub, tone_set, tmp_path):
    code, said = forked(run_config(tone_set, tmp_path))
    assert code == 0, said
    run = tmp_path / "runs/r/fold-1"
    kept = {f"fold_1/{file.name}": file.read_bytes() for file in (run / "epochs").glob("*.s*")}
    assert set(kept) == {"fold_1/epoch_1.safetensors", "fold_1/epoch_2.safetensors"}
    assert hub.files == kept
    made = hub.made[0]
    assert made["name"] == "epochs"
    assert made.get("private") is True or made["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    last, best = load_file(run / "epochs/epoch_2.safetensors"), load_file(run / "best.safetensors")
    first = load_file(run / "epochs/epoch_1.safetensors")
    assert all((last[name] == best[name]).all() for name in best)
    assert any((first[name] != best[name]).any() for name in best)
    kinds = (".json", ".yaml", ".jsonl", ".html")
    texts = [file for file in run.rglob("*") if file.suffix in kinds]
    assert not any(TOKEN in file.read_text() for file in texts)


@pytest.mark.slow
def test_the_kfold_recipe_goes_on_at_fold_and_epoch_and_tells_all_histories(
    hub, tone_set, tmp_path
):
    asked = ("sample_rate", "n_mels", "n_fft", "hop_length", "segment_seconds")
    words = [
        str(ROOT / "configs/kfold_cnn_conv1d.yaml"), f"--data.shards={tone_set}",
        f"--run.dir={tmp_path}", "--train.epochs=2", "--train.batch_size=8", "--train.threads=1",
        "--model.norm_batch=8", *(f"--data.{name}=null" for name in asked),
        "--train.keep_epochs=true", f"--hub.repo={REPO}",
    ]  # fmt: skip
    run = tmp_path / "kfold_cnn_conv1d"
    code, said = forked(*words, "--data.fold=0")
    assert code == 0, said
    lines = records(run / "fold-0")
    per_epoch = max(line["step"] for line in lines) // 2
    code, said = forked(*words, "--data.fold=1", f"--train.max_steps={per_epoch}")
    assert code == 0 and {name for name in hub.files if "fold_1" in name} == {
        "fold_1/epoch_1.safetensors"
    }, said
    first = (run / "fold-1/epochs/epoch_1.safetensors").read_bytes()
    for fold in range(4):
        code, said = forked(*words, f"--data.fold={fold}")
        assert code == 0 and ("is finished" in said) == (fold == 0), said
    names = {f"fold_{fold}/epoch_{epoch}.safetensors" for fold in range(4) for epoch in (1, 2)}
    assert set(hub.files) == names and hub.files["fold_1/epoch_1.safetensors"] == first

    assert main(["collect", str(run)]) == 0
    histories = json.loads((run / "histories.json").read_text())
    assert list(histories) == open_set(tone_set).folds
    for fold, epochs in enumerate(histories.values()):
        assert [epoch["epoch"] for epoch in epochs] == [1, 2]
        evaluated = records(run / f"fold-{fold}", "eval")
        told = [(epoch["val_loss"], epoch["val_macro_f1"]) for epoch in epochs]
        assert told == [(line["loss"], line["macro_f1"]) for line in evaluated]
        assert all(epoch["train_loss"] > 0 and epoch["step"] for epoch in epochs)
        chosen = json.loads((run / f"fold-{fold}/scores.json").read_text())["epoch"]
        assert chosen == 1 + int(np.argmin([loss for loss, _ in told]))
    summary = json.loads((run / "folds.json").read_text())
    scores = [fold["recording"]["accuracy"] for fold in summary["folds"]]
    assert summary["recording"]["mean"]["accuracy"] == pytest.approx(statistics.mean(scores))
    assert summary["recording"]["std"]["accuracy"] == pytest.approx(statistics.stdev(scores))


def test_a_hub_that_refuses_costs_a_warning_without_the_token(hub, tone_set, tmp_path):
    hub.fault = "refuses"
    code, said = forked(run_config(tone_set, tmp_path))
    assert code == 0 and (tmp_path / "runs/r/fold-1/scores.json").exists()
    assert "was not pushed to hub.repo=somebody/epochs" in said
    assert "2 of 2 epochs are not at hub.repo=somebody/epochs" in said
    assert "hf upload somebody/epochs" in said
    assert TOKEN not in said and not hub.files


def push_one(folder: Path, hub: ThreadingHTTPServer, timeout: float) -> float:
    """Seconds that a training waits for one epoch at its end."""
    if not epoch_file(folder, 1).exists():
        (folder / "epochs").mkdir()
        save_file({"weight": np.arange(4.0)}, epoch_file(folder, 1))
    pusher = Pusher(HubConfig(repo=REPO, timeout=timeout), folder, None)
    pusher.log(1, {})
    pusher.close(whole=True)
    began = time.monotonic()
    pusher.wait(0)
    return time.monotonic() - began


def test_a_hub_that_hangs_is_left_until_the_next_start(hub, tmp_path, caplog):
    hub.fault = "hangs"
    assert push_one(tmp_path, hub, timeout=3.0) < 10
    assert "1 of 1 epochs are not at hub.repo=somebody/epochs" in caplog.text
    hub.fault = ""
    hub.over.set()
    push_one(tmp_path, hub, timeout=60.0)
    assert hub.files == {"epoch_1.safetensors": epoch_file(tmp_path, 1).read_bytes()}
    hub.files.clear()
    push_one(tmp_path, hub, timeout=60.0)
    assert not hub.files  # what is there is not sent again


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ({"keeps": False}, "train.keep_epochs=true"),
        ({"token": ""}, "HF_TOKEN"),
        ({"repo": "epochs"}, "owner/name"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_the_training(monkeypatch, words, way):
    monkeypatch.setenv("HF_TOKEN", words.get("token", TOKEN))
    with pytest.raises(UserError, match=way):
        check_hub(HubConfig(repo=words.get("repo", REPO)), words.get("keeps", True))

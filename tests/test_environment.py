"""What a run notes of where it ran: versions, changes, and no secret."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from toolkit import environment
from toolkit.world import World

HERE = World(0, 1, torch.device("cpu"))


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_the_environment_has_the_changes_and_no_secret(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "a.py").write_text("a = 1\n")
    (tree / "wandb_api_key.txt").write_text("an older key that was committed\n")
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "a")
    monkeypatch.setattr(environment, "TREE", tree / "inner")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JWT", "ey-secret-jwt")
    monkeypatch.setenv("OTHER_TOKEN", "other-secret-token")
    monkeypatch.setattr(sys, "argv", ["train.py", "a b.yaml", "--x=other-secret-token"])

    def write() -> dict[str, Any]:
        environment.write_environment(tmp_path, HERE)
        return json.loads((tmp_path / "environment.json").read_text())

    assert not write()["git"].endswith("+") and not (tmp_path / "changes.diff").exists()
    changed = "a = 2\nb = 'caf\N{LATIN SMALL LETTER E WITH ACUTE}'\n"
    (tree / "a.py").write_text(changed)
    (tree / "new.py").write_text("")
    (tree / "wandb_api_key.txt").write_text("other-secret-token")
    found = write()
    assert found["git"].endswith("+") and found["slurm"] == {"SLURM_JOB_ID": "17"}
    assert found["command"] == "train.py 'a b.yaml' --x=***"
    assert found["torch"] == torch.__version__ and found["device"] == "cpu"
    diff = (tmp_path / "changes.diff").read_text()
    assert "?? new.py" in diff and "secret" not in diff + str(found) and "older" not in diff
    git(tree, "checkout", "a.py")
    git(tree, "apply", str(tmp_path / "changes.diff"))
    assert (tree / "a.py").read_text() == changed
    git(tree, "checkout", ".")
    (tree / "new.py").unlink()
    write()
    assert not (tmp_path / "changes.diff").exists()

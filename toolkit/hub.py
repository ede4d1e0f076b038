"""The weights of every epoch on the Hugging Face Hub, as `fold_X/epoch_Y.safetensors`.

A thread looks for new files in RUN/epochs and hands each to a process that may hang or die: no
training waits for it. What failed is tried again after the next epoch, and at the next start.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

from shards.errors import UserError
from toolkit.schema import HubConfig

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
EPOCHS, PUSHED = "epochs", ".pushed"  #: in the run's folder; in there, the names that are there


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where the weights of an epoch, from 1, are kept."""
    return folder / EPOCHS / f"epoch_{epoch}.safetensors"


def check_hub(config: HubConfig, keeps_epochs: bool) -> None:
    """Raise a UserError for a repository that cannot be pushed to."""
    if config.repo is None:
        return
    ways = {
        "pip install .[hub]": find_spec("huggingface_hub") is not None,
        "set train.keep_epochs=true": keeps_epochs,
        "set HF_TOKEN in the environment": bool(os.environ.get("HF_TOKEN")),
        "name it owner/name": config.repo.count("/") == 1,
    }
    for way, is_there in ways.items():
        if not is_there:
            raise UserError(f"hub.repo={config.repo}: nothing can be pushed there; {way}")


class Pusher:
    """Pushes the epochs of the run in `folder`; used as the trackers are."""

    def __init__(self, config: HubConfig, folder: Path, fold: int | None):
        self.config, self.folder = config, folder / EPOCHS
        self.prefix = "" if fold is None else f"fold_{fold}/"
        self.wake, self.ending, self.whole, self.seen = Event(), False, False, 0
        self.process: subprocess.Popen[str] | None = None
        self.thread = Thread(target=self._work, name="hub", daemon=True)
        self.thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Something was measured: there may be an epoch."""
        there = len(epochs(self.folder))
        if there != self.seen:
            self.seen = there
            self.wake.set()

    def image(self, name: str, file: Path) -> None:
        """Pictures stay here."""

    def close(self, whole: bool) -> None:
        """No epoch comes any more; `whole` says whether the training ended as it should."""
        self.ending, self.whole = True, whole
        self.wake.set()

    def wait(self, deadline: float) -> None:
        """Wait for the rest, `timeout` at most; not at all where a training was stopped."""
        self.thread.join(self.config.timeout if self.whole else 0.0)
        if self.process:
            self.process.kill()
        if left := self.waiting():
            repo, count = self.config.repo, len(epochs(self.folder))
            log.warning("%d of %d epochs are not at hub.repo=%s; to bring them: hf upload %s %s %s",
                        len(left), count, repo, repo, self.folder, self.prefix or ".")  # fmt: skip

    def waiting(self) -> list[Path]:
        """The epochs that are not on the Hub, the first one first."""
        known = self.folder / PUSHED
        pushed = known.read_text().split() if known.exists() else []
        return [file for file in epochs(self.folder) if file.name not in pushed]

    def _work(self) -> None:
        last = False
        while not last:
            self.wake.wait()
            self.wake.clear()
            last = self.ending
            for file in self.waiting():
                if fault := self._push(file):
                    log.warning("%s was not pushed to hub.repo=%s (%s); the training goes on",
                                file.name, self.config.repo, fault)  # fmt: skip
                    break
                with open(self.folder / PUSHED, "a", encoding="utf-8") as known:
                    known.write(f"{file.name}\n")

    def _push(self, file: Path) -> str | None:
        """Why a file could not be pushed, or None."""
        words = [str(self.config.repo), str(file), self.prefix + file.name]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "toolkit.hub", *words, str(self.config.private)],
                env=environment(), text=True, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            said = self.process.communicate(timeout=self.config.timeout)[1]
        except subprocess.TimeoutExpired:
            assert self.process
            self.process.kill()
            return f"no answer for {self.config.timeout:g} s"
        except OSError as error:
            return str(error)
        lines = said.replace(os.environ["HF_TOKEN"], "***").strip().splitlines() or [""]
        return (lines[-1] or "its process died") if self.process.returncode else None


def epochs(folder: Path) -> list[Path]:
    """The files of epochs, in their order."""
    found = folder.glob("epoch_*.safetensors")
    return sorted(found, key=lambda file: int(file.stem.partition("_")[2]))


def environment() -> dict[str, str]:
    """Of the process that pushes: quiet, and able to find this module."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | {"PYTHONPATH": path} | quiet


def push(repo: str, file: str, name: str, private: str) -> None:
    """Upload one file, into a repository that is made if it is not there."""
    import huggingface_hub

    hub: Any = huggingface_hub.HfApi(token=os.environ["HF_TOKEN"])
    hub.create_repo(repo, private=private == "True", exist_ok=True)
    hub.upload_file(path_or_fileobj=file, path_in_repo=name, repo_id=repo, commit_message=name)


if __name__ == "__main__":
    try:
        push(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")

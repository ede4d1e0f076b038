"""A W&B run in a process of its own, because only a process can be stopped when it hangs.

In the training's process a dead network would hold up even the interpreter's exit. Training and
W&B's process talk through pipes: a line of JSON a call, and a line for its answer, [fault, result].
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
#: Nothing but what it is told: no console, no code, no look at the machine and its other programs.
QUIET: dict[str, Any] = {
    "silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
    "x_save_requirements": False, "x_transaction_log_flush_interval": 1.0,
}  # fmt: skip
ORPHAN_WAITS = 5  # seconds: what W&B's process has left when the training died without a word


class WandbRun:
    """Used as the other trackers are; the settings are those of `wandb.init`."""

    def __init__(self, settings: Mapping[str, Any], key: str | None):
        self.settings, self.key = settings, key
        self.process: subprocess.Popen[str] | None = None
        # A process that is killed cannot remove its temporary files.
        self.scratch = TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True)

    def start(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "TMPDIR": self.scratch.name}
        environment.pop("WANDB_API_KEY", None)
        environment |= {"WANDB_API_KEY": self.key} if self.key else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.wandb_run"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the training's to see
        )  # fmt: skip
        address = self._call("start", self.settings)
        if address:
            log.info("W&B: %s", address)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log", {"step": step, **values})

    def image(self, name: str, file: Path) -> None:
        self._call("image", name, str(file))

    def close(self, whole: bool) -> None:
        self._call("close", 0 if whole else 1)
        if self.process:
            self.process.wait()
        self.scratch.cleanup()

    def kill(self) -> None:
        """End the process, whatever it does; wandb-core, its child, goes with it."""
        if self.process:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        self.scratch.cleanup()

    def _call(self, name: str, *words: Any) -> Any:
        assert self.process and self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, *words]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        fault, result = json.loads(line) if line else ("its process ended", None)
        if fault:
            raise RuntimeError(fault)
        return result


def serve() -> None:
    """Do what the training asks for, a line a call, until it closes the run or is gone."""
    # Slurm sends them to every process of a job; it is the training that says when to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where wandb may print
    Thread(target=outlive, args=(os.getppid(),), daemon=True).start()
    run: Any = None
    for line in sys.stdin:
        name, *words = json.loads(line)
        fault = address = None
        try:
            if name == "start":
                run = start(*words)
                address = run.url
            elif name == "log":
                run.log(*words)
            elif name == "image":
                import wandb

                run.log({words[0]: wandb.Image(words[1])})
            else:
                run.finish(*words)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        answers.write(json.dumps([fault, address]) + "\n")
        if name == "close":
            return
    if run:
        run.finish(1)
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


def outlive(parent: int) -> None:
    """Leave what is under way a few seconds once the training is gone, and then end."""
    while os.getppid() == parent:
        time.sleep(1.0)
    signal.alarm(ORPHAN_WAITS)


def start(settings: dict[str, Any]) -> Any:
    """The W&B run, taken up again if the server or the folder knows it.

    Steps are a metric of ours: W&B's own count must not fall, and after a kill ours does.
    """
    import wandb

    quiet = {name: value for name, value in QUIET.items() if name in wandb.Settings.model_fields}
    timeout = settings.pop("init_timeout")
    run = wandb.init(
        **settings, resume="allow", settings=wandb.Settings(init_timeout=timeout, **quiet)
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step", step_sync=True)
    return run


if __name__ == "__main__":
    serve()

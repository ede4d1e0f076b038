"""What a test could leave changed for whatever runs after it in its process."""

import logging
import os
import signal
import sys
import threading
from typing import Any

OURS = ("shards", "toolkit", "launch")
SIGNALS = ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # SIGALRM is pytest-timeout's
#: Variables that pytest sets from test to test, or scikit-learn, torch and DeepSpeed as they load.
THEIRS = ("PYTEST_", "KMP_", "TORCH", "PYTORCH_", "KINETO_")


def surroundings() -> dict[str, Any]:
    """By name, so that a difference tells what it is. Asks only modules that are loaded."""
    found: dict[str, Any] = {f"${k}": v for k, v in os.environ.items() if not k.startswith(THEIRS)}
    found |= {"folder": os.getcwd(), "sys.argv": list(sys.argv), "sys.path": list(sys.path)}
    found |= {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    found["umask"] = os.umask(0o022)
    os.umask(found["umask"])
    kept = ("shards",)  # of a feed that nobody closed, with its buffers
    found["threads"] = {t.name for t in threading.enumerate() if not t.daemon or t.name in kept}
    return found | log_levels() | of_libraries()


def changes(before: dict[str, Any]) -> dict[str, Any]:
    """What is no longer as it was: (before, now). A library that was loaded since has no before."""
    now, known = surroundings(), lambda name: name.partition(".")[0] not in ("torch", "matplotlib")
    names = (name for name in before | now if name in before or known(name))
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def log_levels() -> dict[str, Any]:
    """Levels and handlers, but for pytest's; a logger that nobody touched is as if not there."""
    loggers = {"root": logging.getLogger(), **logging.root.manager.loggerDict}
    found: dict[str, Any] = {"logging.disable": logging.root.manager.disable}
    for name, logger in loggers.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in (*OURS, "root"):
            handlers = [h for h in logger.handlers if "pytest" not in type(h).__module__]
            state = (logger.level, logger.propagate, logger.disabled, handlers)
            found |= {f"logger {name}": state} if state != (0, True, False, []) else {}
    return found


def of_libraries() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if torch := sys.modules.get("torch"):
        found["torch.get_num_threads"] = torch.get_num_threads()
        found["torch.get_default_dtype"] = torch.get_default_dtype()
        found["torch.is_grad_enabled"] = torch.is_grad_enabled()
        found["torch.float32_matmul_precision"] = torch.get_float32_matmul_precision()
        found["torch.deterministic"] = torch.are_deterministic_algorithms_enabled()
        cudnn = torch.backends.cudnn
        found["torch.cudnn"] = (cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision)
    if state := sys.modules.get("accelerate.state"):
        kinds = (state.PartialState, state.AcceleratorState, state.GradientState)
        found |= {
            f"accelerate's {k.__name__}": dict(k._shared_state) for k in kinds if k._shared_state
        }
    if matplotlib := sys.modules.get("matplotlib"):
        found["matplotlib.rcParams"] = dict.copy(matplotlib.rcParams)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        found["figures that are open"] = pyplot.get_fignums() or None
    return found

"""For processes that tests start: nothing is drawn, as if modules had what loads matplotlib; and
where HELD is set a training suspends itself at its first checkpoint."""

import os
import signal
import sys
import types


class Blank(types.ModuleType):
    """Functions of any name, which return a picture of nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *words, **more: "<svg></svg>"


for name in ("figures", "curves", "attention"):
    sys.modules[f"toolkit.{name}"] = Blank(name)
sys.modules["boto3"] = None  # or accelerate loads it wherever it is installed


def replace(source, target, original=os.replace):
    first = os.path.basename(target) == "latest" and not os.path.exists(target)
    original(source, target)
    if first:
        os.kill(os.getpid(), signal.SIGSTOP)


if os.environ.get("HELD"):
    os.replace = replace

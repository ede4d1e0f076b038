"""accelerate launch train.py CONFIG [--section.key=value ...] [--debug]"""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext

from shards.command import guard, loading

with loading():
    from toolkit.config import load, usage
    from toolkit.debug import at_the_desk
    from toolkit.schema import Config
    from toolkit.signals import noted
    from toolkit.watch import ending_together
    from toolkit.world import speaks, yield_cores


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        return print(usage())
    words = [word for word in sys.argv[1:] if word != "--debug"]
    config = load(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    yield_cores()
    if "--debug" in sys.argv:
        config = at_the_desk(config)
    overfits = config.train.overfit_batch and config.model.name != "forest"
    with nullcontext() if overfits else noted():  # there nothing is saved
        fit: Callable[[Config], object]
        # Now, so that a typo is told before torch has loaded, which a forest needs not at all.
        if config.model.name == "forest":
            from toolkit.forest import fit
        elif overfits:
            from toolkit.overfit import overfit_batch as fit
        else:
            from toolkit.loop import fit
        with ending_together(config.train.timeout):
            fit(config)


if __name__ == "__main__":
    sys.exit(guard(main, speaks=speaks()))

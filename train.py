"""accelerate launch train.py CONFIG [--section.key=value ...]"""

import logging
import sys

from shards.command import guard
from toolkit.config import load
from toolkit.signals import noted
from toolkit.world import ending_together, speaks, yield_cores


def main() -> None:
    config = load(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    yield_cores()
    with noted():
        from toolkit.loop import fit  # now, so that a typo is told before torch has loaded

        with ending_together():
            fit(config)


if __name__ == "__main__":
    sys.exit(guard(main, speaks=speaks()))

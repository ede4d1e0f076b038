"""accelerate launch train.py CONFIG [--section.key=value ...]"""

import logging
import sys

from shards.command import guard
from toolkit.config import load
from toolkit.world import speaks


def main() -> None:
    from toolkit.loop import fit  # after the config: a typo is told before torch has loaded

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    fit(load(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(guard(main, speaks=speaks()))

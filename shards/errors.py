"""The errors that end a command with one line."""

import re


class UserError(ValueError):
    """What the user asked for cannot be done as it stands.

    The message is a single line that names the value, the rule it breaks and the way out. Command
    lines print it to stderr and exit with code 2; nothing has been half-written by then. Whatever
    stands before the host of an address, a password or a token, is `***`.
    """

    def __str__(self) -> str:
        return re.sub(r"://[^/?#\s]*@", "://***@", super().__str__())


class TrainingError(RuntimeError):
    """A training cannot go on, which all ranks find alike; the message is one line, exit code 1."""


class ShardError(RuntimeError):
    """A shard changed, shrank or vanished under a reader; the message is one line that names it."""

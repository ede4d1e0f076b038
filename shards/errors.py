"""The one error that is the user's to mend."""


class UserError(ValueError):
    """What the user asked for cannot be done as it stands.

    The message is a single line that names the value, the rule it breaks and the way out. Command
    lines print it to stderr and exit with code 2; nothing has been half-written by then.
    """


class ShardError(RuntimeError):
    """A shard changed, shrank or vanished under a reader; the message is one line that names it."""

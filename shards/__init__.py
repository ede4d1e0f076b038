"""Audio in, a shard set out, batches out: everything up to the tensor that a model sees."""

from functools import cache

__version__ = "0.1.0"


@cache
def installed(name: str) -> str | None:
    """The version of a library, None without it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None

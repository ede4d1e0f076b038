"""Where audio, or what was made of it, comes from when it is not a folder yet."""

from importlib import import_module
from typing import Any

from shards.errors import UserError


def needed(module: str) -> Any:
    """A module of the `download` extra, loaded.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            f"{module} is missing; get it with `pip install 'wavefold[download]'`"
        ) from None

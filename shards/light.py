"""Keeps the process that workers are forked from small; it imports this last.

Where loops had to be compiled, as after an installation, 150 MB stay that each worker would have,
too. What was compiled is kept on disk: begun anew, the process finds it there.
"""

import os
import sys

from shards import kernels, loops

AGAIN = "WAVEFOLD_BEGUN_AGAIN"  # in the environment: once only, as there may be nowhere to keep it

_loops = [*vars(kernels).values(), *vars(loops).values()]
_missed = any(loop.stats.cache_misses for loop in _loops if hasattr(loop, "stats"))
if _missed and AGAIN not in os.environ:
    os.environ[AGAIN] = "1"
    os.execv(sys.executable, sys.orig_argv)

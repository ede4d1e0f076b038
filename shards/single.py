"""Keeps every library to one thread, where it is imported before them: in the process that workers
are forked from. Threads of OpenBLAS that are there when it forks spin in each worker as it starts.

Python seeks no garbage there either: imports make much that stays and little that goes.
"""

import gc
import os

gc.disable()
for _name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

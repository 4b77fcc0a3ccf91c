"""What the benchmarks share: what was measured with what, in files that are whole.

Measures nothing. Who imports it finds `train`, `recipes` and `callbacks`, too, wherever
the benchmark is started.
"""

import contextlib
import os
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np
import pandas as pd

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402


def surroundings():
    """What a number was measured with, and where."""
    versions = {
        "python": platform.python_version(),
        "keras": keras.version(),
        keras.backend.backend(): train.backend_version(),
        "numpy": np.__version__,
    }
    return {
        "backend": keras.backend.backend(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        + train.device_names(),
        "commit": commit(),
    }


def commit():
    """The commit that is measured, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    return subprocess.check_output(command, cwd=ROOT, text=True).strip()


def append(rows, path):
    """Add rows to a csv file, whole or not at all."""
    table = pd.DataFrame(rows)
    if path.exists():
        # As text, for what is there shall stay: 4e72448 is a commit, not a number.
        table = pd.concat([pd.read_csv(path, dtype=str), table])
    with whole(path) as new:
        table.to_csv(new, index=False)


@contextlib.contextmanager
def whole(path):
    """Give a path to write to that becomes `path` at the end, if no error comes."""
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)

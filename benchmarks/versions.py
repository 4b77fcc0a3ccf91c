"""Run the quick tests with the lowest and the newest versions that are supported.

    python3.11 benchmarks/versions.py
    python3.13 benchmarks/versions.py newest newest-jax

For each set of versions: a virtual environment of this Python in a temporary folder,
the packages from pip, and the tests of TESTS, which run the examples of every module.
Needs nothing but Python and git, and some three gigabytes of disk for a set.

Appends a row to benchmarks/results/versions.csv, and leaves out what has one; delete
rows to measure them again.
"""

import argparse
import csv
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "versions.csv"
TESTS = "docstrings convergence uncertainty clipping_logger initializers".split()
# Python 3.13 came after NumPy 2.0.
# Matplotlib 3.9 calls what pyparsing 3.3 warns of.
LOWEST = ["keras==3.15.0", "pandas==2.2.3", "matplotlib==3.9.2", "pyparsing<3.3"]
LOWEST += ["numpy==2.0.0;python_version<'3.13'", "numpy==2.1.0;python_version>='3.13'"]
NEWEST = ["keras", "pandas", "matplotlib", "numpy"]
# Name: the backend, and what is installed for it.
SETS = {
    "lowest": ("tensorflow", [*LOWEST, "tensorflow==2.20.0"]),
    "newest": ("tensorflow", [*NEWEST, "tensorflow"]),
    "lowest-jax": ("jax", [*LOWEST, "jax==0.9.0"]),
    "newest-jax": ("jax", [*NEWEST, "jax"]),
    "torch": ("torch", [*NEWEST, "torch==2.13.0"]),
}
NAMES = ("keras", "tensorflow", "jax", "torch", "numpy", "pandas", "matplotlib")
TOOLS = ("pytest", "hypothesis", "scipy")


def measure(name):
    """Install a set of versions and test with it; return its row."""
    backend, packages = SETS[name]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = extra["optional-dependencies"]["dev"]
    tools = [each for each in extra if each.split("==")[0] in TOOLS]
    described = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    commit = subprocess.check_output(described, cwd=ROOT, text=True).strip()
    row = {"set": name, "python": platform.python_version(), "backend": backend}
    with tempfile.TemporaryDirectory() as folder:
        python = environment(folder, packages, tools)
        listed = [python, "-m", "pip", "list", "--format", "freeze"]
        listed = subprocess.check_output(listed, text=True).split()
        versions = dict(line.split("==") for line in listed if "==" in line)
        found = [f"{each} {versions[each]}" for each in NAMES if each in versions]
        row["versions"] = ", ".join(found)
        row |= tested(python, backend, pathlib.Path(folder) / "report.xml")
    row["tests"] = " ".join(TESTS)
    row["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    row["commit"] = commit
    return row


def environment(folder, packages, tools):
    """Make a virtual environment and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(pathlib.Path(folder) / "bin" / "python")
    # Where it can be had, PyTorch for the CPU: the usual one brings gigabytes.
    install = [python, "-m", "pip", "install", "--quiet", *packages, *tools]
    if any(package.startswith("torch") for package in packages):
        install += ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    subprocess.run(install, check=True)
    return python


def tested(python, backend, report):
    """Run the tests with one backend; return what came of them."""
    start = time.perf_counter()
    command = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *(f"tests/test_{name}.py" for name in TESTS)]
    switches = {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    switches |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    subprocess.run(command, cwd=ROOT, env={**os.environ, **switches})
    seconds = round(time.perf_counter() - start)
    (suite,) = ElementTree.parse(report).getroot()
    kinds = [each.get("type") for each in suite.iter("skipped")]
    bad = int(suite.get("failures")) + int(suite.get("errors"))
    return {
        "passed": int(suite.get("tests")) - bad - len(kinds),
        "failed": bad,
        "expected_to_fail": kinds.count("pytest.xfail"),
        "left_out": kinds.count("pytest.skip"),
        "seconds": seconds,
    }


def append(row, path):
    """Add a row to a csv file, whole or not at all."""
    rows = [*read(path), row]
    new = path.with_suffix(".new")
    with open(new, "w", newline="") as file:
        writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)


def read(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", default=[*SETS], metavar="SET")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if unknown := set(options.sets) - SETS.keys():
        parser.error(f"no such set: {', '.join(unknown)}; there are {', '.join(SETS)}")
    for name in options.sets:
        done = [(row["set"], row["python"]) for row in read(options.results)]
        if (name, platform.python_version()) not in done:
            append(measure(name), options.results)
            print(read(options.results)[-1], flush=True)


if __name__ == "__main__":
    main()

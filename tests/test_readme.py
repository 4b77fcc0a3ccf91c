"""What the README says is so."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_tables_are_what_the_code_and_the_results_say():
    import table

    assert table.rendered(README) == README
    for name in ("results", "list of runs"):
        assert README.count(f"<!-- {name} -->\n| run") == 1


def test_no_placeholder_is_left():
    assert re.findall(r"\b[A-Z]+_[A-Z]+\b", README) == ["KERAS_BACKEND"]


def test_python_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)


def test_every_file_named_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link

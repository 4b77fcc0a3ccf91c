"""What the README and the pages behind it say is so."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "benchmarks"))

import table  # noqa: E402

PAGES = {path: path.read_text(encoding="utf-8") for path in table.PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_the_code_and_the_results_say(path):
    assert table.rendered(PAGES[path]) == PAGES[path]


def test_each_table_stands_on_one_page():
    text = "".join(PAGES.values())
    for name in ("list of runs", *table.TABLES):
        assert text.count(f"<!-- {name} -->\n") == 1, name


def test_no_placeholder_is_left():
    assert set(re.findall(r"\b[A-Z]+_[A-Z]+\b", README)) == {"KERAS_BACKEND"}


def test_python_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)

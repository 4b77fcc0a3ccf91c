"""What the README and the pages behind it say is so, in both languages."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import chinese  # noqa: E402
import overview  # noqa: E402
import table  # noqa: E402

PAGES = {path: path.read_text(encoding="utf-8") for path in table.PAGES}
README, CHINESE = PAGES[ROOT / "README.md"], PAGES[ROOT / "README.zh-CN.md"]
BLOCKS = r"<!-- (?!end)(.+?) -->\n(.*?)<!-- end"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_what_the_code_and_the_results_say(path):
    assert table.rendered(PAGES[path], table.PAGES[path]) == PAGES[path]


def test_each_table_stands_on_one_page():
    text = "".join(PAGES.values()).replace(CHINESE, "")
    for name in (*table.WITHOUT_RESULTS, *table.TABLES):
        assert text.count(f"<!-- {name} -->\n") == 1, name


def test_heads_of_the_chinese_tables_are_chinese():
    assert (
        chinese.translated("| run | seeds | a: b |") == "| 训练方案 | 种子数 | a: b |"
    )
    assert chinese.translated("| **no**: run |") == "| **否**: run |"
    for name, text in re.findall(BLOCKS, CHINESE, re.S):
        for head in re.findall(r"^\| (.+) \|\n\|---", text, re.M):
            assert set(head.split(" | ")) <= set(chinese.WORDS.values()), name


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(#+) ",
        r"^```\w*\n.*?^```$",  # less comments
        r"\]\(([^)#]+(?:#[^)]+)?)\)",  # of other pages
        r"^\|",  # of tables
        r"<!-- .+? -->",
    ],
    ids=["headings", "commands", "links", "rows", "tables"],
)
def test_both_languages_have_the_same(pattern):
    found = []
    for text in (README, CHINESE):
        text = re.sub(r"^.*README\.(zh-CN\.)?md.*$", "", text, flags=re.M)
        text = re.sub(r" +# .*$", "", text, flags=re.M)
        found.append(re.findall(pattern, text, re.S | re.M))
    assert found[0] == found[1]
    assert found[0]


def test_the_picture_shows_what_the_tables_say(monkeypatch, tmp_path):
    drawn = overview.overview()
    monkeypatch.setattr(overview, "overview", lambda: drawn)
    overview.main(["--output", str(tmp_path / "overview.png")])
    assert [path.name for path in tmp_path.iterdir()] == ["overview.png"]
    assert (tmp_path / "overview.png").stat().st_size < 200_000
    of_diagnose = drawn.axes[-1].lines[-1].get_xdata()
    results = PAGES[ROOT / "docs" / "results.md"]
    for share, row in zip(of_diagnose, ("faulty", "repaired", "root"), strict=True):
        found = re.search(rf"^\| {row}[^|]*\|[^|]*\| (\d+ %)", results, re.M)[1]
        assert f"{100 * share:.0f} %" == found


@pytest.mark.parametrize("text", [README, CHINESE], ids=["English", "Chinese"])
def test_no_placeholder_is_left(text):
    assert set(re.findall(r"\b[A-Z]+_[A-Z]+\b", text)) == {"KERAS_BACKEND"}


def test_python_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)

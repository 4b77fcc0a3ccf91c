"""Every Python block of docs/ runs alone, and does what its comments say.

Below a line, `# ValueError: text` says that it raises this error, or warns so, and
`# ValueError on JAX and PyTorch: text` that it does there alone. Behind a `print`
stands what it prints, or `TensorFlow: this, JAX: that, PyTorch: another`.
"""

import contextlib
import importlib.util
import io
import pathlib
import re
import warnings

import keras
import pytest
from conftest import FAIL_ON_TORCH

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.parent.glob("*.md"))]
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
HERE = NAMES[keras.backend.backend()]
BLOCKS = [
    pytest.param(
        block,
        id=f"{path.stem}-{number}",
        marks=pytest.mark.skipif(
            not importlib.util.find_spec("tensorflow")
            and ("tensorflow" in block or "TensorBoard(" in block),
            reason="TensorFlow is not installed",
        ),
    )
    for path in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(
        re.findall(
            r"^```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S | re.M
        )
    )
]
TROUBLE = re.compile(r" *# (\w+(?:Error|Warning))(?: on ([\w ]+))?: (.+)")
PRINTED = re.compile(r"print\(.*\)  # (.+)")


def expected(block):
    """Errors and warnings, and what is printed before the first error, here."""
    troubles, prints = [], []
    for line in block.splitlines():
        match = TROUBLE.match(line)
        if match and HERE in (match[2] or HERE).split(" and "):
            if match[1] == "TBNotInstalledError" and importlib.util.find_spec(
                "tensorboard"
            ):
                continue
            troubles.append((match[1], match[3]))
            if match[1].endswith("Error"):
                break
        if match := PRINTED.match(line):
            by_backend = dict(
                re.findall(r"(TensorFlow|JAX|PyTorch): ([^,]+)", match[1])
            )
            prints.append(by_backend.get(HERE, match[1]))
    return troubles, prints


@pytest.mark.parametrize("block", BLOCKS)
def test_block_does_what_its_comments_say(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    troubles, printed = [], io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Keras 3.15's own: reading a variable under NumPy 2.
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(block, "block", "exec"), {"__name__": "block"})
        except Exception as error:
            troubles.append((type(error).__name__, str(error)))
    troubles = [(w.category.__name__, str(w.message)) for w in caught] + troubles
    expected_troubles, expected_prints = expected(block)
    assert len(troubles) == len(expected_troubles), troubles
    for (kind, text), (name, part) in zip(troubles, expected_troubles, strict=True):
        assert kind == name and part in text
    assert printed.getvalue().splitlines() == expected_prints


def test_the_page_of_backends_has_every_reason_for_a_failure():
    text = (DOCS / "backends.md").read_text(encoding="utf-8")
    for reason in FAIL_ON_TORCH:
        assert f"\n| {reason} | " in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_and_picture_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text)
    pictures = re.findall(r'<img src="([^"]+)"', text)
    for page, anchor in links + [(picture, "") for picture in pictures]:
        target = path.parent / page if page else path
        assert target.exists(), page
        if anchor:
            headings = re.findall(
                r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M
            )
            assert anchor in [
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                for heading in headings
            ], anchor

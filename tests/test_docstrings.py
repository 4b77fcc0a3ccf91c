"""Every example in a docstring of recipes/ and callbacks/ runs as pasted."""

import ast
import doctest
import importlib
import pathlib
import re
import textwrap

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [
    f"{room}.{path.stem}"
    for room in ("recipes", "callbacks")
    for path in sorted((ROOT / room).glob("*.py"))
    if path.name != "__init__.py"
]


def examples():
    for module in MODULES:
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented):
                docstring = ast.get_docstring(node) or ""
                blocks = re.findall(r"^( *)```python\n(.*?)```", docstring, re.M | re.S)
                for number, (indent, block) in enumerate(blocks):
                    name = f"{module}:{getattr(node, 'name', 'header')}:{number}"
                    yield pytest.param(textwrap.dedent(indent + block), id=name)


@pytest.mark.parametrize("example", list(examples()))
def test_fenced_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(example, "example", "exec"), {"__name__": "example"})
    finally:  # what an example sets, and does not come to set back
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("module", MODULES)
def test_doctest_prints_what_it_says(module):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(module), optionflags=flags)[0] == 0

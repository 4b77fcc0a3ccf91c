"""The reference that `make docs` writes."""

import ast
import html
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
    path
    for room in ("recipes", "callbacks")
    for path in sorted((ROOT / room).glob("*.py"))
    if path.name != "__init__.py"
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{file name: text}, as the command in the Makefile writes them."""
    import pdoc

    folder = tmp_path_factory.mktemp("reference")
    template = ROOT / "docs" / "template"
    pdoc.render.configure(docformat="google", template_directory=template)
    pdoc.pdoc("recipes", "callbacks", output_directory=folder)
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def public_names(path):
    """Classes, functions, and methods as `Class.method`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}"


@pytest.mark.slow
def test_every_public_name_is_there_and_can_be_searched(pages):
    for path in FILES:
        page = pages[f"{path.parent.name}/{path.stem}.html"]
        for name in public_names(path):
            is_public = not any(part.startswith("_") for part in name.split("."))
            assert (f'id="{name}"' in page) >= is_public, name
            searched = (
                f'"{path.parent.name}.{path.stem}.{name}": {{' in pages["search.js"]
            )
            assert searched >= is_public, name


@pytest.mark.slow
def test_the_first_page_has_every_file_with_its_sentence(pages):
    for path in FILES:
        sentence = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        assert f'"{path.parent.name}/{path.stem}.html"' in pages["index.html"]
        text = html.unescape(re.sub("<[^>]+>", "", pages["index.html"]))
        assert sentence.replace("`", "") in text


@pytest.mark.slow
def test_references_have_lines_of_their_own_and_private_paths_are_not_shown(pages):
    for path in FILES:
        page = pages[f"{path.parent.name}/{path.stem}.html"]
        assert "<p>Reference: " in page and "<p>Revised: " in page
        classes = re.findall(r'<span class="def">class</span>.*?</div>', page, re.S)
        assert not any("keras.src" in line for line in classes)

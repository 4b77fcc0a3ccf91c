"""The law of the house: every file of recipes/ and callbacks/ can be copied alone."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
    path
    for room in ("recipes", "callbacks")
    for path in (ROOT / room).glob("*.py")
    if path.name != "__init__.py"
)
ANYWHERE = {*sys.stdlib_module_names, "keras", "numpy"}
IN_FUNCTIONS = {"pandas", "matplotlib"}
BACKENDS = {"tensorflow", "jax", "torch"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def imports(path):
    """(module, whether inside a function) for each import of a file."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append(("." * child.level + (child.module or ""), inside))
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            visit(child, inside or function)

    visit(ast.parse(path.read_text()), False)
    return found


def broken_imports(path):
    broken = []
    for module, inside in imports(path):
        top = module.split(".")[0]
        allowed = top in ANYWHERE or (inside and top in IN_FUNCTIONS | BACKENDS)
        if not allowed or module.startswith("keras.src"):
            broken.append(module)
    return broken


@every_file
def test_imports_only_the_standard_library_keras_and_numpy(path):
    assert broken_imports(path) == []


@every_file
def test_a_backend_is_imported_only_where_the_backend_was_asked_for(path):
    if any(module.split(".")[0] in BACKENDS for module, _ in imports(path)):
        assert "keras.backend.backend()" in path.read_text()


@pytest.mark.parametrize(
    "line",
    [
        "from recipes.schedules import PowerDecay",
        "from .schedules import PowerDecay",
        "import pandas",
        "import tensorflow as tf",
        "from keras.src import backend",
        "def f():\n    import scipy",
        "class A:\n    import matplotlib.pyplot",
    ],
)
def test_the_import_check_sees_a_broken_law(line, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(line)
    assert broken_imports(path)


def test_each_file_loads_alone_from_an_empty_folder(tmp_path):
    for path in FILES:
        (tmp_path / path.name).write_text(path.read_text())
    # One interpreter for all: each start of a backend costs seconds. Without the
    # repository, nor an installed copy of it, nor the folder of the copies in reach.
    script = f"""
import importlib.util, pathlib, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
class NoRepository:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("recipes", "callbacks"):
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, NoRepository)
for file in sorted(pathlib.Path({str(tmp_path)!r}).glob("*.py")):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "recipes" not in sys.modules
    print(file.stem)
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == sorted(path.stem for path in FILES)


def test_file_names_are_unique_and_hide_no_other_module():
    names = [path.stem for path in FILES]
    assert len(set(names)) == len(names)
    taken = {*sys.stdlib_module_names, *IN_FUNCTIONS, *BACKENDS, "keras", "numpy"}
    assert not taken & set(names)


def definitions(sources):
    """(name, number of lines, what it says) of all that stands at a file's top level.

    Blank lines and docstrings do not count, nor does the name in what it says.
    """
    for source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                lines = ast.get_source_segment(source, node).splitlines()
                num_lines = sum(bool(line.strip()) for line in lines)
                if ast.get_docstring(node) is not None:
                    docstring, *node.body = node.body
                    text = ast.get_source_segment(source, docstring)
                    num_lines -= sum(bool(line.strip()) for line in text.splitlines())
                name, node.name = node.name, ""
                yield name, num_lines, ast.dump(node)


def wrong_twins(sources):
    """Names of what stands in several files and breaks the rule for twins."""
    by_name, by_text = (collections.defaultdict(list) for _ in range(2))
    for name, num_lines, text in definitions(sources):
        by_name[name].append((num_lines, text))
        if num_lines > 2:
            by_text[text].append(name)
    wrong = [names for names in by_text.values() if len(set(names)) > 1]
    for name, twins in by_name.items():
        num_lines, text = twins[0]
        is_short = text.startswith("FunctionDef(") and num_lines <= 8
        is_pair = len(twins) == 2 and twins[0] == twins[1]
        if len(twins) > 1 and not (is_pair and is_short and name.startswith("_")):
            wrong.append([name])
    return wrong


def test_only_short_private_functions_stand_twice_equal_and_under_one_name():
    assert wrong_twins([path.read_text() for path in FILES]) == []


@pytest.mark.parametrize(
    "sources",
    [
        ["def _f():\n    return 1", "def _f():\n    return 2"],
        ["def f(): pass"] * 2,
        ["class _A:\n    def f(self): pass"] * 2,
        ["def _f(): pass"] * 3,
        ["def _f():\n" + "    pass\n" * 8] * 2,
        [
            "def _f(x):\n    x += 1\n    return x",
            "def _g(x):\n    x += 1\n    return x",
        ],
    ],
)
def test_the_twin_check_sees_a_broken_law(sources):
    assert wrong_twins(sources)


# --- nothing that is read can run code

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"__import__", "read_pickle", "to_pickle", "urlopen", "urlretrieve"}
UNSAFE_CALLS |= {"enable_unsafe_deserialization"}
# What shows that a download of Keras's is checked: by who asks for it, or by Keras.
DOWNLOADS = {"fashion_mnist": "hashlib.sha256", "cifar10": "Keras downloads, checks"}


def unsafe_lines(source):
    """Numbers of the lines that could run code from a file, or trust a download."""
    unsafe = set()
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        if UNSAFE_MODULES & {module.split(".")[0] for module in modules}:
            unsafe.add(node.lineno)
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        owner = ast.unparse(getattr(function, "value", ast.Name("")))
        # `model.eval()` is PyTorch's and reads nothing.
        name = getattr(function, "attr", getattr(function, "id", ""))
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        digest = DOWNLOADS.get(owner.split(".")[-1], " no digest ")
        if (
            (name in {"eval", "exec"} and not owner)
            or name in UNSAFE_CALLS
            or (
                f"{owner}.{name}" == "np.load"
                and options.get("allow_pickle") != "False"
            )
            or options.get("safe_mode", "True") != "True"
            or (name == "get_file" and "file_hash" not in options)
            or (name == "load_data" and owner and digest not in source)
        ):
            unsafe.add(node.lineno)
    return sorted(unsafe)


READERS = [*FILES, ROOT / "train.py", *sorted((ROOT / "benchmarks").glob("*.py"))]


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.stem)
def test_nothing_that_is_read_can_run_code(path):
    assert unsafe_lines(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "eval(text)",
        "exec(text)",
        "pandas.read_pickle(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "keras.saving.load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
        "keras.utils.get_file('a', 'https://a')",
        "keras.datasets.mnist.load_data()",
        "datasets.cifar10.load_data()",
        "urllib.request.urlopen(url)",
    ],
)
def test_the_check_of_what_is_read_sees_a_broken_law(line):
    assert unsafe_lines(line) == [1]


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "keras.saving.load_model(path, safe_mode=True)",
        "keras.utils.get_file('a', 'https://a', file_hash='00')",
    ],
)
def test_the_check_of_what_is_read_leaves_the_rest(line):
    assert unsafe_lines(line) == []


@every_file
def test_header_says_what_when_how_and_since(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    lines = docstring.splitlines()
    assert len(lines[0]) <= 85 and lines[0].endswith(".")
    assert lines[1] == ""
    assert "```python" in docstring
    assert any(line.startswith("Reference: ") for line in lines)
    assert re.fullmatch(r"Revised: \d+\.\d+\.\d+", lines[-1])


@every_file
def test_a_long_file_says_why_in_its_header(path):
    source = path.read_text()
    if len(source.splitlines()) > 250:
        header = " ".join(ast.get_docstring(ast.parse(source)).split())
        assert "longer than most" in header


@every_file
def test_every_file_has_its_tests(path):
    assert (ROOT / "tests" / f"test_{path.stem}.py").exists()

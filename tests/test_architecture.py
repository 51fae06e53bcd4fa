"""The house keeps its shape: layers, folders, packaging and what an import may do."""

import ast
import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import armillary

ROOT = Path(armillary.__file__).parent
BELOW = {
    "settings": set(),
    "data": {"settings"},
    "tokenizers": {"data", "settings"},
    "models": {"tokenizers", "data", "settings"},
    "training": {"models", "tokenizers", "data", "settings"},
    "serving": {"models", "tokenizers", "data", "settings"},
    "slurm": {"training", "settings"},
    "evaluation": {"training", "serving", "models", "tokenizers", "data", "settings"},
    "demo": {"evaluation", "training", "serving", "models", "tokenizers", "data", "settings"},
    "commands": {"evaluation", "slurm", "training", "serving", "models", "tokenizers", "data", "settings"},
    "cli": {
        "commands",
        "demo",
        "evaluation",
        "slurm",
        "training",
        "serving",
        "models",
        "tokenizers",
        "data",
        "settings",
    },
    "__init__": {"serving", "models", "data"},
}
"""What each folder or module of the root may import, besides itself."""
NOT_THE_PACKAGE = {"tests", "benchmarks", "docs", "build", "dist", "runs"}


def package_files():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in NOT_THE_PACKAGE and not any(p.startswith(".") for p in parts):
            found.append(path)
    return found


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_layers(path):
    """Layers that a file's relative imports lead to, imports inside functions included; (line, layer)."""
    folder = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            for first in [full[0]] if full else [alias.name for alias in node.names]:
                yield node.lineno, first


def absolute_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module


def test_every_part_of_the_package_has_its_place_among_the_layers():
    assert {layer_of(path) for path in package_files()} <= set(BELOW)
    assert len(package_files()) > 60


def test_layers_import_downward_only():
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {layer}"
        for path in package_files()
        for line, layer in imported_layers(path)
        if layer != layer_of(path) and layer not in BELOW[layer_of(path)]
    ]
    assert not upward


def test_the_check_of_layers_sees_imports_of_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "data" / "readers" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..a import b\nfrom ...models.c import d\ndef f():\n    from ... import cli, settings\n")
    assert sorted(imported_layers(path)) == [(1, "data"), (2, "models"), (4, "cli"), (4, "settings")]


def test_imports_inside_the_package_are_relative():
    absolute = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in package_files()
        for line, name in absolute_imports(path)
        if name.split(".")[0] == "armillary"
    ]
    assert not absolute


def test_nothing_unpickles():
    loaders = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in package_files()
        for line, name in absolute_imports(path)
        if name.split(".")[0] in loaders
    ]
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.save"}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found.append(f"{path.relative_to(ROOT)}:{node.value.lineno} allows pickle")
    assert not found


def test_only_the_root_holds_an_init_file():
    found = [p for p in package_files() if p.name == "__init__.py"]
    assert found == [ROOT / "__init__.py"]


def run_python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_in_the_repository_root_hugging_faces_tokenizers_are_found():
    code = "import tokenizers, transformers; print(tokenizers.__file__); print(tokenizers.Tokenizer)"
    answer = run_python(code, ROOT)
    assert answer.returncode == 0, answer.stderr
    assert "site-packages" in answer.stdout.splitlines()[0]


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_the_list_of_packages_names_every_folder_with_code():
    folders = {path.parent.relative_to(ROOT).parts for path in package_files()}
    listed = set(pyproject()["packages"])
    assert {".".join(("armillary", *parts)) for parts in folders} <= listed
    for name in listed:
        assert ROOT.joinpath(*name.split(".")[1:]).is_dir(), name


def test_the_wheel_holds_every_file_that_the_code_reads():
    settings = pyproject()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    data = [
        Path(name)
        for name in listed
        if Path(name).parts[0] not in NOT_THE_PACKAGE
        and not name.startswith(".")
        and name.endswith((".yaml", ".npz", ".fits", ".fits.gz", ".sbatch", ".html", ".js", ".css", ".parquet"))
    ]
    assert len(data) > 20
    left_out = []
    for path in data:
        covered = False
        for package, patterns in settings["package-data"].items():
            folder = Path(*package.split(".")[1:])
            if path.is_relative_to(folder):
                inside = str(path.relative_to(folder))
                covered |= any(matches(inside, pattern) for pattern in patterns)
        if not covered:
            left_out.append(str(path))
    assert not left_out


def matches(path, pattern):
    """Setuptools' globs: `*` stays in its folder, `**/` goes into any depth."""
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(Path(path).name, pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


HEAVY = ("torch", "numpy", "transformers", "lightning", "astropy", "scipy", "sklearn", "faiss", "fastapi", "pyarrow")


def test_importing_the_package_opens_no_connection_and_loads_nothing_heavy():
    code = f"""
import socket, sys
def refuse(*_): raise RuntimeError("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import armillary, armillary.settings, armillary.cli
print([name for name in {HEAVY} if name in sys.modules])
"""
    answer = run_python(code, "/")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_loading_every_public_name_opens_no_connection():
    code = """
import socket
def refuse(*_): raise RuntimeError("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import armillary
print(*(getattr(armillary, name) for name in armillary.__all__))
"""
    answer = run_python(code, "/")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", sorted(armillary.__all__))
def test_a_public_name_is_what_its_module_defines(name):
    value = getattr(armillary, name)
    assert name in dir(armillary)
    assert value.__module__.startswith("armillary.")
    if name == "load":
        assert value == armillary.FoundationModel.load
    else:
        assert value.__name__ == name


def test_a_name_that_is_not_public_is_an_error_that_lists_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Clinet'; its public names are .*'Client'"):
        armillary.Clinet  # noqa: B018


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert armillary.__version__ == project["version"]

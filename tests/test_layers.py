"""Imports go one way: jobs → pipelines → sif_batch, and within sif_batch as its docstring says."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

import sif_batch

ROOMS = ("sif_batch", "pipelines", "jobs")  # each may import from those before it
BRING_IN = {
    "export",
    "features",
    "int8",
    "onnx_files",
    "onnx_graph",
    "onnx_to_torch",
    "own_onnx",
    "timm_export",
    "torch_runtime",
    "torchvision_weights",
    "weights",
}
READER = ("sif_batch.query", "sif_batch.evaluation", "sif_batch.pictures", "sif_batch.release")
# What the base install has; the rest stands in extras.
BASE = {"click", "faiss", "fsspec", "numpy", "onnxruntime", "pi_heif", "PIL", "pyarrow", "pydantic", "rich"}


def modules(room: str) -> list[Path]:
    found = sorted((REPOSITORY / room).rglob("*.py"))
    assert found
    return found


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Every module that the file imports, at its top or inside a function, by its full name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            for alias in node.names:  # `from sif_batch import release` imports a module too
                inner = REPOSITORY.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def stated_order() -> list[str]:
    """The modules in the order that the docstring of sif_batch gives."""
    assert sif_batch.__doc__
    (listed,) = re.findall(r"before it: ([a-z_,\s]+)\.", sif_batch.__doc__)
    return re.findall(r"[a-z_]+", listed)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    later = ROOMS[ROOMS.index(room) + 1 :]
    wrong = [
        f"{module_name(f)} imports {name}" for f in modules(room) for name in imports(f) if name.split(".")[0] in later
    ]
    assert not wrong


def test_nothing_imports_tests_or_benchmarks() -> None:
    for room in ROOMS:
        for file in modules(room):
            assert not {"tests", "benchmarks", "conftest", "synthetic"} & {name.split(".")[0] for name in imports(file)}


def test_the_docstring_of_sif_batch_names_every_module_once() -> None:
    found = {module_name(file).split(".")[1] for file in modules("sif_batch") if module_name(file) != "sif_batch"}
    assert sorted(stated_order()) == sorted(found)


def test_a_module_of_sif_batch_imports_only_from_earlier_ones() -> None:
    order = stated_order()
    wrong = []
    for file in modules("sif_batch"):
        if (name := module_name(file)) == "sif_batch":
            continue
        place = order.index(name.split(".")[1])
        for imported in imports(file):
            room, _, rest = imported.partition(".")
            if room == "sif_batch" and rest and order.index(rest.split(".")[0]) > place:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_sif_batch_imports_neither_beam_nor_click() -> None:
    for file in modules("sif_batch"):
        assert not {"apache_beam", "click", "rich", "pandas"} & {name.split(".")[0] for name in imports(file)}


def test_only_what_brings_a_network_in_imports_torch_and_nothing_else_imports_that() -> None:
    """It runs in a child process of its own, called by name."""
    torch = {"torch", "torchvision", "timm", "onnx", "onnxscript"}
    uses = {module_name(file) for file in modules("sif_batch") if torch & {n.split(".")[0] for n in imports(file)}}
    assert uses <= {f"sif_batch.encoders.{name}" for name in BRING_IN}
    for room in ROOMS:
        for file in modules(room):
            if module_name(file) not in uses:
                assert not uses & set(imports(file)), file


def test_pipelines_import_no_command_line() -> None:
    for file in modules("pipelines"):
        assert not {"click", "rich", "torch"} & {name.split(".")[0] for name in imports(file)}


def test_the_library_imports_what_the_base_install_has() -> None:
    """threadpoolctl, of the batch extra, is for training alone; without pydicom and tifffile their images are
    `unsupported`; the clients of stores are loaded by the URLs that need them."""
    clients = {"obstore", "botocore", "google"}
    allowed = BASE | clients | {"sif_batch", "threadpoolctl", "pydicom", "tifffile"} | set(sys.stdlib_module_names)
    for file in modules("sif_batch"):
        if module_name(file).rpartition(".")[2] not in BRING_IN:
            assert {name.split(".")[0] for name in imports(file)} <= allowed, file


def loaded_by(statement: str) -> set[str]:
    """The modules that a new process has loaded after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", READER)
def test_the_reader_loads_neither_torch_nor_beam(module: str) -> None:
    assert not {"torch", "apache_beam", "threadpoolctl", "click", "rich", "jobs", "pipelines"} & loaded_by(
        f"import {module}"
    )


def test_the_command_line_loads_neither_torch_nor_beam_until_it_needs_them() -> None:
    heavy = {"torch", "apache_beam", "matplotlib", "jinja2", "sklearn"}
    assert not heavy & loaded_by(
        "import jobs.cli, jobs.search, jobs.status, jobs.run, jobs.evaluate, jobs.duplicates, jobs.bulk"
    )


def test_the_child_loads_no_beam() -> None:
    assert not {"torch", "apache_beam"} & loaded_by("import sif_batch.child, sif_batch.embedding, sif_batch.codes")

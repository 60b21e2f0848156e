"""The house: rooms in one order, no circles, and who alone may import what.

Imports count wherever they stand, at the top of a file or inside a function, and so do the modules that strings name
for a child process to import.
"""

import ast
import graphlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import REPOSITORY

import sif_batch

PACKAGES = ("sif_batch", "pipelines", "jobs")  # each may import from those before it
NAMED = re.compile(r"(?:sif_batch|pipelines|jobs)(?:\.[A-Za-z_]\w*)+(?::\w+)?")
NO_MODULE = {"sif_batch.config"}  # a key of click's context
# These run in child processes, called by name: they alone import torch and what comes with it.
EXPORT = re.compile(r"sif_batch\.(model_export\.\w+|encoders\.(torch_runtime|onnx_to_torch))")
ALONE = {
    "torch": EXPORT,
    "torchvision": EXPORT,
    "timm": EXPORT,
    "onnx": EXPORT,
    "onnx2torch": EXPORT,
    "onnxscript": EXPORT,
    "safetensors": EXPORT,
    "obstore": re.compile(r"sif_batch\.storage\.bucket_\w+"),
    "botocore": re.compile(r"sif_batch\.storage\.bucket_\w+"),
    "google": re.compile(r"sif_batch\.storage\.bucket_\w+|pipelines\.worker"),
    "grpc": re.compile(r"pipelines\.\w+"),
    "apache_beam": re.compile(r"pipelines\.\w+"),
    "threadpoolctl": re.compile(r"sif_batch\.index\.\w+|sif_batch\.machine\.arithmetic|jobs\.reports\.map_places"),
    "pydicom": re.compile(r"sif_batch\.images\.\w+"),
    "tifffile": re.compile(r"sif_batch\.images\.\w+"),
    "imagecodecs": re.compile(r"sif_batch\.images\.\w+"),
    "streamlit": re.compile(r"jobs\.page\.\w+"),
    "starlette": re.compile(r"jobs\.page\.\w+"),
    "uvicorn": re.compile(r"jobs\.page\.\w+"),
    "click": re.compile(r"jobs\.cli\.\w+"),
    "rich": re.compile(r"jobs\.(progress|text|terminal\.\w+|cli\.\w+)"),
    "jinja2": re.compile(r"jobs\.reports\.\w+"),
    "matplotlib": re.compile(r"jobs\.reports\.\w+"),
    "sklearn": re.compile(r"jobs\.reports\.\w+"),
    # What the base install has.
    **dict.fromkeys(("faiss", "fsspec", "numpy", "onnxruntime", "pi_heif", "PIL", "pyarrow", "pydantic"), None),
}
READER = (
    "sif_batch.query",
    "sif_batch.evaluation.metrics",
    "sif_batch.sources.originals",
    "sif_batch.release.manifest",
)


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def module_in(name: str) -> str | None:
    """The module of ours that a dotted name begins with."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def named_in(tree: ast.Module) -> Iterator[str]:
    """The `module` and `module:function` that strings name."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and NAMED.fullmatch(node.value)
            and node.value not in NO_MODULE
        ):
            yield node.value


def imports(tree: ast.Module) -> Iterator[str]:
    """Every name that is imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(name: str) -> set[str]:
    """The modules of ours that a module uses."""
    tree = TREES[name]
    found = {module_in(used) for used in imports(tree)} | {module_in(used.split(":")[0]) for used in named_in(tree)}
    return {module for module in found if module} - {name}


def room(module: str) -> str:
    """Package and folder: `sif_batch.query`; the files beside the rooms are the `ground`."""
    package, *inner = module.split(".")
    if package == "pipelines":
        return package
    is_room = inner and (REPOSITORY / package / inner[0]).is_dir()
    return f"{package}.{inner[0] if is_room else 'ground'}"


def stated_order() -> list[str]:
    """The rooms in the order that the docstring of sif_batch gives."""
    assert sif_batch.__doc__
    of = {
        package: re.findall(r"[a-z_]+", re.findall(rf"In {package}: ([a-z_,\s]+)\.", sif_batch.__doc__)[0])
        for package in ("sif_batch", "jobs")
    }
    assert "Then pipelines." in sif_batch.__doc__
    return [*(f"sif_batch.{r}" for r in of["sif_batch"]), "pipelines", *(f"jobs.{r}" for r in of["jobs"])]


def test_the_docstring_of_sif_batch_names_every_room_once() -> None:
    assert sorted(stated_order()) == sorted({room(module) for module in FILES})


@pytest.mark.parametrize("name", stated_order())
def test_a_room_imports_only_from_those_before_it(name: str) -> None:
    order = stated_order()
    allowed = set(order[: order.index(name) + 1])
    inside = [module for module in FILES if room(module) == name and module not in PACKAGES]
    wrong = [f"{module} uses {used}" for module in inside for used in sorted(uses(module)) if room(used) not in allowed]
    assert not wrong


def test_no_modules_form_a_circle() -> None:
    """The doors, sif_batch and sif_batch.query, may look into every room."""
    graph = {module: uses(module) for module in FILES if module not in (*PACKAGES, "sif_batch.query")}
    list(graphlib.TopologicalSorter(graph).static_order())  # or CycleError, which names them


def test_every_room_is_opened_by_its_modules_names() -> None:
    """No `__init__.py` says anything but the two doors."""
    full = [name for name, file in FILES.items() if file.name == "__init__.py" and file.read_text(encoding="utf-8")]
    assert full == ["sif_batch", "sif_batch.query"]


def test_the_rooms_import_nothing_of_tests_benchmarks_or_scripts() -> None:
    for name, tree in TREES.items():
        assert not {"tests", "benchmarks", "scripts"} & {used.split(".")[0] for used in imports(tree)}, name


@pytest.mark.parametrize("name", sorted({named for tree in TREES.values() for named in named_in(tree)}))
def test_what_a_string_names_is_there(name: str) -> None:
    """`module:function` for a child process: the module is found, and defines the function."""
    module, _, function = name.partition(":")
    assert importlib.util.find_spec(module), module
    if function:
        assert function in {node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)}, name


def test_each_library_is_imported_where_it_belongs() -> None:
    wrong = []
    for name, tree in TREES.items():
        for used in {used.split(".")[0] for used in imports(tree)} - set(PACKAGES) - set(sys.stdlib_module_names):
            if used not in ALONE or ((alone := ALONE[used]) and not alone.fullmatch(name)):
                wrong.append(f"{name} imports {used}")
    assert not wrong


def test_what_imports_torch_is_imported_by_its_like_alone() -> None:
    heavy = {"torch", "torchvision", "timm", "onnx"}
    found = {name for name, tree in TREES.items() if heavy & {used.split(".")[0] for used in imports(tree)}}
    for name, tree in TREES.items():
        if name not in found:
            assert not found & {module_in(used) for used in imports(tree)}, name


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
    heavy = {"torch", "apache_beam", "threadpoolctl", "click", "rich", "jobs", "pipelines"}
    assert not heavy & loaded_by(f"import {module}")


def test_the_package_alone_loads_next_to_nothing_and_gives_an_index_when_asked() -> None:
    assert not {"numpy", "faiss", "pyarrow"} & loaded_by("import sif_batch")
    assert "pyarrow" in loaded_by("from sif_batch import Index")


def test_the_command_line_loads_neither_torch_nor_beam_until_it_needs_them() -> None:
    heavy = {"torch", "apache_beam", "matplotlib", "jinja2", "sklearn"}
    commands = ("asking.search", "asking.bulk", "upkeep.status", "nightly.run", "reports.evaluate")
    assert not heavy & loaded_by(f"import jobs.cli.main, {', '.join(f'jobs.{name}' for name in commands)}")


def test_the_child_loads_no_beam() -> None:
    children = "sif_batch.machine.child, sif_batch.embedding.shard, sif_batch.index.codes"
    assert not {"torch", "apache_beam"} & loaded_by(f"import {children}")

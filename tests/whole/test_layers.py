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
from fnmatch import fnmatch
from pathlib import Path

import pytest
from paths import REPOSITORY

import sif_batch

NAMED = re.compile(r"sif_batch(?:\.[A-Za-z_]\w*)+(?::\w+)?")
NO_MODULE = {"sif_batch.config"}  # a key of click's context
DOORS = ("sif_batch", "sif_batch.query")  # what a user imports from
# Torch and what comes with it: these run in child processes, called by name.
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnx2torch", "onnxscript", "safetensors")
BASE = ("faiss", "fsspec", "numpy", "onnxruntime", "pi_heif", "PIL", "pyarrow", "pydantic")  # the base install
# Which modules of sif_batch may import a library.
ALONE = {
    **dict.fromkeys(BASE, ("*",)),
    **dict.fromkeys(HEAVY, ("model_export.*", "encoders.torch_runtime", "encoders.onnx_to_torch")),
    **dict.fromkeys(("obstore", "botocore"), ("storage.bucket_*",)),
    **dict.fromkeys(("grpc", "apache_beam"), ("pipelines.*",)),
    **dict.fromkeys(("pydicom", "tifffile", "imagecodecs"), ("images.*",)),
    **dict.fromkeys(("streamlit", "starlette", "uvicorn"), ("jobs.page.*",)),
    **dict.fromkeys(("jinja2", "matplotlib", "sklearn"), ("jobs.reports.*",)),
    "google": ("storage.bucket_*", "pipelines.worker"),
    "threadpoolctl": ("index.*", "machine.arithmetic", "jobs.reports.map_places"),
    "click": ("jobs.cli.*",),
    "rich": ("jobs.progress", "jobs.text", "jobs.terminal.*", "jobs.cli.*"),
}
READER = (
    "sif_batch.query",
    "sif_batch.evaluation.metrics",
    "sif_batch.sources.originals",
    "sif_batch.release.manifest",
)


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    if parts[0] in LINKED:
        parts = ("sif_batch", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LINKED = ("pipelines", "jobs")  # folders that are seen from inside sif_batch too
FILES = {module_name(file): file for top in ("sif_batch", *LINKED) for file in sorted((REPOSITORY / top).rglob("*.py"))}
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
    """The folder that a module lies in, by its own name; `ground` and `jobs` for the files beside the rooms."""
    _, *inner = module.split(".")
    if inner[:1] == ["jobs"]:
        return inner[1] if inner[1:] and (REPOSITORY / "jobs" / inner[1]).is_dir() else "jobs"
    return inner[0] if inner and (REPOSITORY / "sif_batch" / inner[0]).is_dir() else "ground"


def stated_order() -> list[str]:
    """The rooms in the order that the docstring of sif_batch gives."""
    assert sif_batch.__doc__
    (listed,) = re.findall(r"before it: ([a-z_,\s]+)\.", sif_batch.__doc__)
    return re.findall(r"[a-z_]+", listed)


def test_the_docstring_of_sif_batch_names_every_room_once() -> None:
    assert sorted(stated_order()) == sorted({room(module) for module in FILES})


@pytest.mark.parametrize("name", stated_order())
def test_a_room_imports_only_from_those_before_it(name: str) -> None:
    order = stated_order()
    allowed = set(order[: order.index(name) + 1])
    inside = [module for module in FILES if room(module) == name and module != "sif_batch"]
    wrong = [f"{module} uses {used}" for module in inside for used in sorted(uses(module)) if room(used) not in allowed]
    assert not wrong


def test_no_modules_form_a_circle() -> None:
    """The doors may look into every room."""
    graph = {module: uses(module) for module in FILES if module not in DOORS}
    list(graphlib.TopologicalSorter(graph).static_order())  # or CycleError, which names them


def test_every_room_is_opened_by_its_modules_names() -> None:
    """No `__init__.py` says anything but the two doors'."""
    full = [name for name, file in FILES.items() if file.name == "__init__.py" and file.read_text(encoding="utf-8")]
    assert tuple(full) == DOORS


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


def libraries(name: str) -> set[str]:
    """What a module imports beside ourselves and the standard library."""
    return {used.split(".")[0] for used in imports(TREES[name])} - {"sif_batch"} - set(sys.stdlib_module_names)


def test_each_library_is_imported_where_it_belongs() -> None:
    wrong = [
        f"{name} imports {used}"
        for name in FILES
        for used in libraries(name)
        if not any(fnmatch(name.removeprefix("sif_batch."), pattern) for pattern in ALONE.get(used, ()))
    ]
    assert not wrong


def test_what_imports_torch_is_imported_by_its_like_alone() -> None:
    heavy = {name for name in FILES if {"torch", "torchvision", "timm", "onnx"} & libraries(name)}
    for name in set(FILES) - heavy:
        assert not heavy & {module_in(used) for used in imports(TREES[name])}, name


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
    heavy = {"torch", "apache_beam", "threadpoolctl", "click", "rich", "sif_batch.jobs", "sif_batch.pipelines"}
    assert not heavy & loaded_by(f"import {module}")


def test_the_package_alone_loads_next_to_nothing_and_gives_an_index_when_asked() -> None:
    assert not {"numpy", "faiss", "pyarrow"} & loaded_by("import sif_batch")
    assert "pyarrow" in loaded_by("from sif_batch import Index")


def test_the_command_line_loads_neither_torch_nor_beam_until_it_needs_them() -> None:
    heavy = {"torch", "apache_beam", "matplotlib", "jinja2", "sklearn"}
    commands = ("cli.main", "asking.search", "asking.bulk", "upkeep.status", "nightly.run", "reports.evaluate")
    assert not heavy & loaded_by("\n".join(f"import sif_batch.jobs.{name}" for name in commands))


def test_the_child_loads_no_beam() -> None:
    children = ("machine.child", "embedding.shard", "index.codes")
    assert not {"torch", "apache_beam"} & loaded_by("\n".join(f"import sif_batch.{name}" for name in children))


def test_no_module_is_loaded_under_two_names() -> None:
    """Nothing imports `jobs` or `pipelines` but through `sif_batch`, though the folders lie beside it."""
    scripts = ("__main__", "app")  # they run as they are imported
    light = [name for name in FILES if not set(HEAVY) & libraries(name) and name.rpartition(".")[2] not in scripts]
    assert not set(LINKED) & loaded_by("\n".join(f"import {name}" for name in light))

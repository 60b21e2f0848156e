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
from fnmatch import fnmatch

import pytest
from paths import REPOSITORY

from scripts.rooms import FILES, LINKED, OUT, TREES, draw, imports, module_in, named_in, room, stated_order, uses

DOORS = ("sif_batch", "sif_batch.query")  # what a user imports from
# Torch and what comes with it: these run in child processes, called by name.
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnx2torch", "onnxscript", "safetensors")
BASE = ("faiss", "fsspec", "numpy", "onnxruntime", "pi_heif", "PIL", "pyarrow", "pydantic")  # the base install
# Which modules of sif_batch may import a library.
ALONE = {
    **dict.fromkeys(BASE, ("*",)),
    **dict.fromkeys(HEAVY, ("model_export.*", "encoders.torch_runtime", "encoders.onnx_to_torch")),
    **dict.fromkeys(("obstore", "botocore", "requests"), ("storage.bucket_*",)),
    **dict.fromkeys(("grpc", "apache_beam"), ("pipelines.*",)),
    **dict.fromkeys(("pydicom", "tifffile", "imagecodecs"), ("images.*",)),
    **dict.fromkeys(("streamlit", "starlette", "uvicorn"), ("jobs.page.*",)),
    **dict.fromkeys(("jinja2", "matplotlib", "sklearn"), ("jobs.reports.*",)),
    "google": ("storage.bucket_*", "pipelines.worker"),
    "threadpoolctl": ("index.*", "machine.arithmetic", "jobs.reports.map_places"),
    "click": ("jobs.cli.*",),
    "rich": ("jobs.progress", "jobs.terminal.*", "jobs.cli.*"),
}
READER = (
    "sif_batch.query",
    "sif_batch.evaluation.metrics",
    "sif_batch.sources.originals",
    "sif_batch.release.manifest",
)


def test_the_docstring_of_sif_batch_names_every_room_once() -> None:
    assert sorted(stated_order()) == sorted({room(module) for module in FILES})


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    assert OUT.read_text(encoding="utf-8") == draw(), "run make docs"


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


def test_a_file_can_be_read_at_one_sitting() -> None:
    """At most 300 lines, but for one class whose methods are those of fsspec's interface."""
    long = {name for name, file in FILES.items() if len(file.read_text(encoding="utf-8").splitlines()) > 300}
    assert long == {"sif_batch.storage.bucket_filesystem"}


def test_every_room_is_described_in_the_architecture() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].strip("| *") for line in text.partition("## The rooms")[2].splitlines() if "|" in line]
    grounds = {"ground": "ground of sif_batch", "jobs": "ground of jobs"}
    assert rows[2:] == [grounds.get(name, name) for name in stated_order()] + rows[2 + len(stated_order()) :]


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


def test_what_tests_and_benchmarks_name_in_strings_is_there() -> None:
    """`module`, `module:function`, and `module.name` for monkeypatch."""
    folders = [REPOSITORY / "tests", REPOSITORY / "benchmarks", REPOSITORY / "scripts"]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for folder in folders for file in folder.rglob("*.py")}
    wrong = []
    for file, tree in trees.items():
        for name in named_in(tree):
            module = module_in(name.split(":")[0])
            rest = name.removeprefix(str(module)).strip(".:")
            if not module or (
                rest and not re.search(rf"\b{rest.split('.')[0]}\b", FILES[module].read_text(encoding="utf-8"))
            ):
                wrong.append(f"{file.name}: {name}")
    assert not wrong


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
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=900, check=True
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
    children = (
        "machine.child",
        "embedding.shard",
        "index.quantize_part",
        "query.bulk",
        "query.duplicates",
        "gate.int8",
    )
    assert not {"torch", "apache_beam"} & loaded_by("\n".join(f"import sif_batch.{name}" for name in children))


def test_no_module_is_loaded_under_two_names() -> None:
    """Nothing imports `jobs` or `pipelines` but through `sif_batch`, though the folders lie beside it."""
    scripts = ("__main__", "app")  # they run as they are imported
    light = [name for name in FILES if not set(HEAVY) & libraries(name) and name.rpartition(".")[2] not in scripts]
    assert not set(LINKED) & loaded_by("\n".join(f"import {name}" for name in light))

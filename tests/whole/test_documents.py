"""The documents do what they say: their commands, snippets, schemas, the notebook, and the reference."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from commands import run_command
from paths import PHOTOS, REPOSITORY
from schemas import SCHEMAS, schema
from test_docs import BLOCK

from sif_batch.jobs.cli.main import cli
from sif_batch.query.index import Index

OPERATIONS = REPOSITORY / "docs" / "operations.md"
NOTEBOOK = REPOSITORY / "examples" / "open_a_release.ipynb"


def test_the_reference_is_that_of_the_code() -> None:
    command = [sys.executable, "scripts/make_reference.py", "--check"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def test_every_schema_is_sound_and_named_in_the_formats() -> None:
    text = (REPOSITORY / "docs/formats.md").read_text(encoding="utf-8")
    found = sorted(SCHEMAS.iterdir())
    assert len(found) == 15
    for file in found:
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text(encoding="utf-8")))
        assert f"schemas/{file.name}" in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"ok": True, "damaged": [{}], "files": 1}, schema("verify-output"))


def in_process(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json, without a process of its own."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_commands_print_and_write_fits_its_schema(tmp_path: Path) -> None:
    photos, root = tmp_path / "photos", tmp_path / "root"
    for photo in sorted(PHOTOS.rglob("*.jpg"))[:24:2]:
        (photos / photo.parent.name).mkdir(parents=True, exist_ok=True)
        (photos / photo.parent.name / photo.name).write_bytes(photo.read_bytes())
    asked = sorted(photos.rglob("*.jpg"))[0]
    jsonschema.validate(run_command(tmp_path, "run", photos, root, "--json").json, schema("run-output"))
    (photos / "broken.jpg").write_text("no image")
    outputs = {"run-output": run_command(tmp_path, "run", root, "--max-failures", 1, "--json").json}
    outputs |= {
        "dry-run-output": in_process("run", root, "--dry-run"),
        "search-output": in_process("search", root, asked, "-k", 2),
        "status-output": in_process("status", root),
        "releases-output": in_process("releases", root),
        "evaluate-output": in_process("evaluate", root, "--labels", "folder"),
        "compare-output": in_process("compare", root),
        "explain-output": in_process("explain", root, "photos/broken.jpg"),
        "verify-output": in_process("verify", root),
        "compact-output": in_process("compact", root),
        "erase-output": in_process("erase", root, "photos/broken.jpg"),
        "error-output": run_command(tmp_path, "evaluate", root, "--labels", "colour", "--json").json,
    }
    release = outputs["run-output"]["release"]
    outputs["release"] = json.loads((root / "releases" / release / "release.json").read_text())
    outputs["run"] = json.loads((root / "runs" / outputs["run-output"]["run"] / "run.json").read_text())
    outputs["root"] = json.loads((root / "root.json").read_text())
    assert {file.name.removesuffix(".schema.json") for file in SCHEMAS.iterdir()} == set(outputs)
    for name, output in outputs.items():
        jsonschema.validate(output, schema(name))


def run_blocks(document: Path, folder: Path) -> int:
    """Run a document's blocks in order, in a copy of the repository with the same .venv. Returns how many."""
    if subprocess.run(["make", "-q", ".venv/.installed-batch"], cwd=REPOSITORY).returncode:
        pytest.skip("needs a .venv as make test installs it, no older than setup.py and requirements.txt")
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(REPOSITORY / ".venv")
    env = os.environ | {"PYTHONPATH": str(folder)}
    blocks = BLOCK.findall(document.read_text(encoding="utf-8"))
    for language, text in blocks:
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [".venv/bin/python", "-c", text]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return len(blocks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "blocks"), [("tutorial", 8), ("how-to", 7), ("asking", 6)])
def test_a_document_does_what_it_says(checkout: Path, name: str, blocks: int) -> None:
    assert run_blocks(REPOSITORY / "docs" / f"{name}.md", checkout) == blocks
    if name == "how-to":
        assert run_blocks(REPOSITORY / "docs/indexes.md", checkout) == 1
    if name == "tutorial":
        for made in ("answers.jpg", "report.html", "compare.html", "evaluation/evaluation.html", "map/map.html"):
            assert (checkout / "build" / made).stat().st_size > 10_000


def written_commands() -> list[tuple[str, list[str]]]:
    """Every `sif-batch` command that stands in a block of any document but the reference, with its arguments."""
    found = []
    for document in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        text = document.read_text(encoding="utf-8") if document.name != "reference.md" else ""
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.search(r"(?:^|[\s/\"=])sif-batch ([a-z]+ .*)", line):
                    line = command[1] if command[1].count('"') % 2 == 0 else command[1].rpartition('"')[0]
                    words = shlex.split(line, comments=True)
                    ends = (i for i, word in enumerate(words) if re.match(r"[|<>&]|2>", word))
                    found.append((words[0], words[1 : next(ends, len(words))]))
    return found


def test_every_command_that_is_written_somewhere_is_one_that_there_is(tmp_path: Path) -> None:
    """Those too that no test can run, such as a line for cron."""
    config = tmp_path / "nightly.toml"
    config.write_text(re.findall(r"^```toml\n(.*?)^```", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)[0])
    found = written_commands()
    assert {"run", "serve", "search"} <= {name for name, _ in found} and len(found) > 40
    for name, arguments in found:
        given = [str(config) if argument.endswith("/nightly.toml") else argument for argument in arguments]
        cli.commands[name].make_context(name, given)


@pytest.mark.engines
def test_the_blocks_about_buckets_do_what_they_say(tmp_path: Path) -> None:
    """With a real S3 server on a folder of this machine."""
    from scripts.engines import fetch, stores

    text = (REPOSITORY / "docs/how-to.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "s3://" in block]
    (bucket, inventory) = (block for block in blocks if "Runner" not in block)
    try:
        server = stores.s3_server(tmp_path)
        with server as served:
            for place in ("photos/2026", "bucket/photos", "reports/bucket/inventory/data", "indexes"):
                (served.folder.parent / place).mkdir(parents=True)
            for photo in sorted((PHOTOS / "pizza").iterdir()):
                for place in ("photos/2026", "bucket/photos"):
                    shutil.copy(photo, served.folder.parent / place)
            shutil.copy(photo, tmp_path / "query.jpg")
            env = os.environ | served.env | {"PYTHONPATH": str(REPOSITORY), "ROOT": "there"}
            env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SIF_BATCH_CACHE": str(tmp_path)}
            list_it = (
                "from sif_batch.sources.listing import parse_sources; from sif_batch.sources.files import find_files;"
                "import pyarrow.parquet as pq; found, _ = find_files(parse_sources(['s3://bucket/photos'])[0]);"
                "pq.write_table(found.select(['path', 'size', 'version']), 'list.parquet')"
            )
            said = []
            for command in (bucket, f'"{sys.executable}" -c "{list_it}"', inventory.replace("ROOT", "there")):
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", command],
                    cwd=tmp_path,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                said.append(done.stdout)
                if (tmp_path / "list.parquet").exists():
                    report = served.folder.parent / "reports/bucket/inventory"
                    shutil.move(tmp_path / "list.parquet", report / "data")
                    listed = [{"key": "bucket/inventory/data/list.parquet"}]
                    manifest = {"fileFormat": "Parquet", "fileSchema": "as its own", "files": listed}
                    (report / "2026-11-28T01-00Z").mkdir()
                    (report / "2026-11-28T01-00Z/manifest.json").write_text(json.dumps(manifest))
    except fetch.Unavailable as reason:
        pytest.skip(f"no S3 server: {reason}")
    assert f"2026/{photo.name}" in said[0]
    assert len(Index.open(tmp_path / "there")) == len(list((PHOTOS / "pizza").iterdir()))


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a process of its own, as Restart and Run All does; `display` prints what it is given."""
    done = run_command(tmp_path, "run", PHOTOS, tmp_path / "build/index", "--json")
    assert done.code == 0, done.err
    code = "def display(*shown):\n    print(*(type(one).__name__ for one in shown))\n\n" + code_of(NOTEBOOK)
    code = code.replace("examples/photos", str(PHOTOS))
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
    )
    assert shown.returncode == 0, shown.stderr
    assert "Image" in shown.stdout and "photos/pizza/image_0003.jpg" in shown.stdout


def test_the_notebook_was_executed() -> None:
    cells = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/jpeg" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r'"output_type": "error"', text) and NOTEBOOK.stat().st_size < 500_000

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Finished
from paths import PHOTOS

ASK = """
import json, sys
from sif_batch.query import Index

index = Index.open(sys.argv[1])
hits = index.search(image=sys.argv[2], k=3)
loaded = sorted({"torch", "apache_beam"} & set(sys.modules))
print(json.dumps({"keys": [hit.key for hit in hits], "loaded": loaded}))
"""


def uv() -> str:
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        pytest.skip("needs uv, which make test installs")
    return found


def test_what_is_built_holds_every_module_under_one_name(checkout: Path, tmp_path: Path) -> None:
    """The wheel made from the sdist: jobs and pipelines lie in sif_batch there, with their templates and styles."""
    out = tmp_path / "dist"
    done = subprocess.run([uv(), "build", "--out-dir", str(out)], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(out.glob("*.whl"))).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sif_batch"}
    suffixes = (".py", ".css", ".js", ".html", ".j2", ".onnx", ".json", ".jpg")
    for top, into in (("sif_batch", ""), ("jobs", "sif_batch/"), ("pipelines", "sif_batch/")):
        held = [file.relative_to(checkout) for file in (checkout / top).rglob("*") if file.suffix in suffixes]
        assert held and not [file for file in held if f"{into}{file}" not in names]


def test_a_users_own_modules_of_our_folders_names_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("raise SystemExit('not ours')\n")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    command = Path(sys.executable).with_name("sif-batch")
    if not command.exists():
        pytest.skip("needs sif-batch installed beside this Python")
    for arguments in (["--version"], ["run", str(tmp_path / "nowhere"), str(tmp_path / "root")]):
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=900)
        assert "not ours" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 1 and "nowhere" in done.stderr


def test_a_users_own_modules_where_a_command_is_started_stop_nothing(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    """Nor does its worker process run them."""
    command = Path(sys.executable).with_name("sif-batch")
    if not command.exists():
        pytest.skip("needs sif-batch installed beside this Python")
    work = tmp_path / "work"
    work.mkdir()
    for name in ("sif_batch", "random", "types", "logging", "numpy"):
        (work / f"{name}.py").write_text("print('not ours', flush=True)\nraise SystemExit('not ours')\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [command, "run", photos(2), tmp_path / "root", "--no-gate", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=work, env=env, timeout=900)
    assert done.returncode == 0 and "not ours" not in done.stdout + done.stderr, done.stderr
    assert json.loads(done.stdout)["embedded"] == 2


def test_a_base_install_answers_from_a_copied_release(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], checkout: Path, tmp_path: Path
) -> None:
    source = photos(12)
    release = sif_batch("run", source, tmp_path / "root", "--json").json["release"]
    shutil.copytree(tmp_path / "root/releases" / release, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "root")

    python = tmp_path / "reader/bin/python"
    install = [uv(), "pip", "install", "--quiet", "--python", str(python), "--constraint", "requirements.txt", "."]
    for command in ([uv(), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "reader")], install):
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    listed = [uv(), "pip", "list", "--quiet", "--python", str(python), "--format", "json"]
    names = {package["name"] for package in json.loads(subprocess.check_output(listed))}
    assert "sif-batch" in names and not names & {"torch", "apache-beam"}

    photo = sorted(source.rglob("*.jpg"))[0]
    asked = subprocess.run(
        [python, "-c", ASK, tmp_path / "elsewhere", photo], capture_output=True, text=True, cwd=tmp_path, timeout=900
    )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["keys"][0] == f"photos/{photo.relative_to(source)}" and not answer["loaded"]
    shown = subprocess.run(
        [tmp_path / "reader/bin/sif-batch", "search", tmp_path / "elsewhere", PHOTOS / photo.relative_to(source)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=900,
    )
    assert shown.returncode == 0 and answer["keys"][0] in shown.stdout
    run = subprocess.run(
        [tmp_path / "reader/bin/sif-batch", "run", source, tmp_path / "new"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=900,
    )
    assert run.returncode == 1 and "sif-batch[batch]" in run.stderr and "Traceback" not in run.stderr

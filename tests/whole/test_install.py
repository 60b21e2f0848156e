import json
import shutil
import subprocess
import sys
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


def test_a_base_install_answers_from_a_copied_release(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], checkout: Path, tmp_path: Path
) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, which make test installs")
    source = photos(12)
    release = sif_batch("run", source, tmp_path / "root", "--json").json["release"]
    shutil.copytree(tmp_path / "root/releases" / release, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "root")

    python = tmp_path / "reader/bin/python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--constraint", "requirements.txt", "."]
    for command in ([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "reader")], install):
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    listed = [uv, "pip", "list", "--quiet", "--python", str(python), "--format", "json"]
    names = {package["name"] for package in json.loads(subprocess.check_output(listed))}
    assert "sif-batch" in names and not names & {"torch", "apache-beam"}

    photo = sorted(source.rglob("*.jpg"))[0]
    asked = subprocess.run(
        [python, "-c", ASK, tmp_path / "elsewhere", photo], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["keys"][0] == f"photos/{photo.relative_to(source)}" and not answer["loaded"]
    shown = subprocess.run(
        [tmp_path / "reader/bin/sif-batch", "search", tmp_path / "elsewhere", PHOTOS / photo.relative_to(source)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert shown.returncode == 0 and answer["keys"][0] in shown.stdout
    run = subprocess.run(
        [tmp_path / "reader/bin/sif-batch", "run", source, tmp_path / "new"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert run.returncode == 1 and "sif-batch[batch]" in run.stderr and "Traceback" not in run.stderr

import os
import re
import subprocess
from pathlib import Path

import pytest
from paths import REPOSITORY

from sif_batch.failures import PERMANENT, TRANSIENT

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = {"make test"}  # this is it


def test_the_readme_does_what_it_says(checkout: Path) -> None:
    """Its commands and snippets, in order, in a copy of the repository with the same .venv."""
    if subprocess.run(["make", "-q", ".venv/.installed-batch"], cwd=REPOSITORY).returncode:
        pytest.skip("needs a .venv as make test installs it, no older than setup.py and requirements.txt")
    (checkout / ".venv").symlink_to(REPOSITORY / ".venv")
    env = os.environ | {"PYTHONPATH": str(checkout)}
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"sh", "python"}
    printed = ""
    for language, text in blocks:
        if text.strip() in NOT_RUN:
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [".venv/bin/python", "-c", text]
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert "photos/pizza/image_0003.jpg" in printed
    assert {"make index", "make test"} <= set("\n".join(text for _, text in blocks).splitlines())


def test_files_that_a_user_looks_for_are_there() -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "docs/decisions.md", "examples/README.md", ".ci/run"):
        assert (REPOSITORY / name).stat().st_size > 50
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "make test" in (REPOSITORY / ".ci/run").read_text(encoding="utf-8")


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "examples/README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_kind_of_failure_is_documented_with_its_remedy() -> None:
    text = (REPOSITORY / "docs/images.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## Why an image fails")[2].splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{kind}` ({name}) | {means} | {remedy} |"
        for name, kinds in (("permanent", PERMANENT), ("transient", TRANSIENT))
        for kind, (means, remedy) in kinds.items()
    ]

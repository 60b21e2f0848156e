import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from commands import Finished
from paths import PHOTOS, REPOSITORY
from PIL import Image

from sif_batch.errors import SifBatchError
from sif_batch.jobs.cli.main import cli

Run = Callable[..., Finished]
PIZZA = sorted((PHOTOS / "pizza").iterdir())[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROOT of 60 photos, to read from."""
    from commands import run_command

    folder = tmp_path_factory.mktemp("cli")
    for photo in [*sorted(PHOTOS.rglob("*.jpg"))[:50], *sorted((PHOTOS / "pizza").iterdir())]:
        target = folder / "photos" / photo.relative_to(PHOTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, target)
    (folder / "photos/note.txt").write_text("ignored")
    done = run_command(folder, "run", folder / "photos", folder / "root")
    assert done.code == 0, done.err
    for words in ("listed", "embedded", "recall@10", "outcome   published", "release   ", "ask it    sif-batch search"):
        assert words in done.out
    assert "ignored by name" in done.out
    assert re.search(r"embedding: 60 / 60 images, [\d.]+/s, 0 failed, ETA 0 s", done.err)
    return folder / "root"


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_every_command_and_option_has_help(sif_batch: Run, name: str) -> None:
    done = sif_batch(*([name] if name else []), "--help")
    assert done.code == 0 and "Usage: " in done.out
    command = cli.commands[name] if name else cli
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
            assert parameter.opts[-1] in done.out


def test_every_command_is_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name} " in readme for name in cli.commands)


def test_search_shows_a_table_and_json(sif_batch: Run, root: Path) -> None:
    shown = sif_batch("search", root, PIZZA, "-k", 3)
    assert shown.code == 0 and "similarity" in shown.out
    assert f"photos/pizza/{PIZZA.name}" in shown.out and "1.0000" in shown.out
    found = sif_batch("search", root, PIZZA, PIZZA, "-k", 3, "--json").json
    assert found["release"] == (root / "LATEST").read_text().strip()
    assert [query["query"] for query in found["queries"]] == [str(PIZZA)] * 2
    hits = found["queries"][0]["hits"]
    assert len(hits) == 3 and set(hits[0]) == {"key", "uri", "similarity", "columns"}
    assert hits[0]["key"] == f"photos/pizza/{PIZZA.name}" and hits[0]["columns"]["folder"] == "pizza"
    assert Path(hits[0]["uri"]).read_bytes() == PIZZA.read_bytes()


def test_search_makes_a_contact_sheet(sif_batch: Run, root: Path, tmp_path: Path) -> None:
    done = sif_batch("search", root, PIZZA, "-k", 3, "--contact-sheet", tmp_path / "out/sheet.png", "--json")
    assert done.code == 0 and len(done.json["queries"][0]["hits"]) == 3
    with Image.open(tmp_path / "out/sheet.png") as sheet, Image.open(PIZZA) as query:
        assert sheet.width == 8 + 4 * (144 + 2 * 4 + 8)
        shown, twin = (np.asarray(sheet.convert("RGB").crop((x, 30, x + 152, 182)), int) for x in (8, 168))
        assert query.size and np.array_equal(shown, twin) and shown.std() > 20  # the best hit is the query itself
    wrong = sif_batch("search", root, PIZZA, "--contact-sheet", tmp_path / "sheet.txt")
    assert wrong.code == 1 and "no picture ends with '.txt'" in wrong.err and not wrong.out


def test_search_errors_are_one_line(sif_batch: Run, root: Path, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_text("no image")
    for arguments, says in (
        ((root, tmp_path / "no.jpg"), "not usable as an image: not_an_image"),
        ((root, tmp_path / "gone.jpg"), "cannot be read"),
        ((tmp_path, PIZZA), "neither a ROOT nor a release"),
    ):
        done = sif_batch("search", *arguments, "--json")
        assert done.code == 1 and says in done.err and len(done.err.splitlines()) == 1
        assert done.json["outcome"] == "error" and says in done.json["error"]


def in_process(*arguments: object) -> Result:
    """A command without a process of its own: what it raises stands in `exception`."""
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_search_asks_again_with_marks_and_keeps_them(root: Path, tmp_path: Path) -> None:
    key, log = f"photos/pizza/{PIZZA.name}", tmp_path / "log"

    def asked(*arguments: object) -> list[dict[str, Any]]:
        done = in_process("search", root, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return list(json.loads(done.stdout)["queries"])

    first = asked("--key", key)[0]
    keys = [hit["key"] for hit in first["hits"]]
    assert first["query"] == key and key not in keys
    right = next(name for name in keys if "/pizza/" in name)
    wrong = next(name for name in keys if "/pizza/" not in name)
    marks = ("--right", right, "--wrong", wrong, "--judgements", tmp_path / "marks", "--feedback-log", log)
    (answer,) = asked("--key", key, *marks, "--where", "folder in ('pizza', 'Leopards')")
    assert answer["query"] == key and wrong not in [hit["key"] for hit in answer["hits"]]
    assert {hit["columns"]["folder"] for hit in answer["hits"]} <= {"pizza", "Leopards"}
    shown = in_process("search", root, "--right", right, "--expand", 2, "--contact-sheet", tmp_path / "sheet.png")
    assert "marks" in shown.stdout and right in shown.stdout and (tmp_path / "sheet.png").exists()
    asked(PIZZA, "--feedback-log", log)
    (together,) = asked("--key", right, "--key", wrong, "--together")
    assert not {right, wrong} & {hit["key"] for hit in together["hits"]}
    judged = json.loads(in_process("evaluate", root, "--labels", tmp_path / "marks", "--json").stdout)
    assert judged["n_queries"] == 2 and judged["matched"]["labelled"] == 2
    summary = json.loads(in_process("usage", log, "--json").stdout)
    assert [summary[name] for name in ("queries", "filtered", "marked", "by")] == [2, 1, 1, {"image": 1, "key": 1}]
    assert str(PIZZA) not in log.read_text() and "queries" in in_process("usage", log).stdout


def test_images_ask_in_bulk(sif_batch: Run, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "queries"
    folder.mkdir()
    photos = sorted((PHOTOS / "pizza").iterdir())[:3]
    for photo in photos:
        shutil.copyfile(photo, folder / photo.name)
    (folder / "broken.jpg").write_text("no image")
    done = sif_batch("search", root, "--queries", folder, "--out", "hits.parquet", "-k", 4, "--json")
    assert done.code == 0, done.err
    assert (done.json["queries"], done.json["failed"], done.json["hits"]) == (4, 1, 12)
    broken, *hits = pq.read_table(tmp_path / "hits.parquet").to_pylist()
    assert broken["query"] == "queries/broken.jpg" and broken["error"] and broken["key"] is None
    one_by_one = json.loads(in_process("search", root, *photos, "-k", 4, "--json").stdout)["queries"]
    assert [hit["key"] for hit in hits] == [hit["key"] for query in one_by_one for hit in query["hits"]]
    assert [hit["query"] for hit in hits[::4]] == [f"queries/{photo.name}" for photo in photos]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hits.parquet", "queries"]


def test_what_cannot_be_asked_says_why(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bulk = ("--queries", tmp_path / "empty", "--out", tmp_path / "hits.parquet")
    for arguments, code, says in (
        (("-k", 0, PIZZA), 2, "0 is not in the range"),
        ((PIZZA, "--where", "colour = 'red'"), 1, "no column 'colour' to filter by; it has: key, source, folder"),
        ((PIZZA, "--where", "folder = pizza"), 1, "breaks off at 'pizza': a value"),
        ((PIZZA, "--right", "photos/gone.jpg"), 1, "no image of the release has the key 'photos/gone.jpg'"),
        ((PIZZA, PIZZA, "--right", "x"), 2, "add --together"),
        ((PIZZA, "--key", "x"), 2, "exclude each other"),
        ((PIZZA, "--judgements", "x"), 2, "--judgements keeps marks"),
        ((), 2, "nothing to ask with"),
        (("--queries", "empty"), 2, "--queries and --out go together"),
        (bulk, 1, "empty"),
        ((*bulk, "--key", "x"), 2, "--queries goes without keys"),
        ((*bulk, "--contact-sheet", "x.png"), 2, "--queries goes without --contact-sheet"),
        ((PIZZA, "--", "--runner=FnApiRunner"), 2, "--runner=FnApiRunner goes with --queries"),
    ):
        done = in_process("search", root, *arguments)
        assert done.exit_code == code
        told = done.output if code == 2 else f"{done.exception}; {getattr(done.exception, 'remedy', 'it has none')}"
        assert says in told and (code == 2 or (isinstance(done.exception, SifBatchError) and "\n" not in told)), told
    assert isinstance(in_process("usage", tmp_path / "gone").exception, SifBatchError)


def test_wrong_usage_exits_2(sif_batch: Run) -> None:
    for arguments in (
        ["run"],
        ["search", "x"],
        ["duplicates", "x"],
        ["run", "a", "b", "--workers", "0"],
        ["nothing"],
        ["run", "--", "--x"],
    ):
        done = sif_batch(*arguments)
        assert done.code == 2 and "Error: " in done.err
    assert sif_batch("run", "--json").json["outcome"] == "error"


def test_status_releases_and_evaluate(sif_batch: Run, root: Path) -> None:
    status = sif_batch("status", root, "--json").json
    assert [status[n] for n in ("listed", "good", "failed", "to_do", "open_plans")] == [60, 60, 0, 0, 0]
    assert status["release"]["n"] == 1 and status["last_run"]["outcome"] == "published"
    assert "unfinished plans" in sif_batch("status", root).out

    (release,) = sif_batch("releases", root, "--json").json["releases"]
    assert set(release) >= {"n", "id", "time", "rows", "recall_at_10", "bytes", "current", "action", "held"}
    assert release["current"] and release["rows"] == 60 and release["id"] == status["release"]["release"]
    assert "current" in sif_batch("releases", root).out

    judged = sif_batch("evaluate", root, "--labels", "folder", "--json").json
    assert {"n_queries", "precision", "recall", "f1", "map", "r_precision", "mrr", "exact"} <= set(judged)
    assert judged["n_queries"] == 60 and judged["map"] > 0.5
    table = sif_batch("evaluate", root, "--labels", "folder").out
    assert all(
        words in table for words in ("mAP", "95 % interval", "exact, pearson", "kept of exact ten", "worst labels")
    )
    assert judged["timing"]["images"][-1]["images"] == 60 and judged["losses"][0]["stage"] == "exact"
    alone = sif_batch("evaluate", root / "releases" / release["id"], "--labels", "folder", "--json").json
    assert alone["exact"] is None and alone["map"] == judged["map"]
    assert "it has: source, folder" in sif_batch("evaluate", root, "--labels", "colour").err
    assert sif_batch("evaluate", root, "--labels", "folder", "--folds", 3, "--holdout", 0.2).code == 2
    out = root.parent / "evaluation"
    assert sif_batch("evaluate", root, "--labels", "folder", "-k", 3, "--out", out).code == 0
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert "cannot be read" not in page and page.count("data:image/webp") >= 5 * 9
    assert set(json.loads((out / "evaluation.json").read_text())["precision"]) == {"3"}


def test_verify_names_what_is_damaged(sif_batch: Run, root: Path, tmp_path: Path) -> None:
    assert sif_batch("verify", root).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    release = copy / "releases" / (copy / "LATEST").read_text().strip()
    with open(release / "segments/000/rows.npy", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    (release / "images.arrow").unlink()
    part = next((copy / "parts").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    found = sif_batch("verify", copy, "--json")
    assert found.code == 5 and not found.json["ok"]
    reasons = {Path(damage["file"]).name: damage["reason"] for damage in found.json["damaged"]}
    assert set(reasons) == {"rows.npy", "images.arrow", part.name}
    assert reasons["images.arrow"] == "missing" and "sha256" in reasons["rows.npy"]
    assert "rows.npy" in sif_batch("verify", release).out
    broken = sif_batch("search", copy, PIZZA)
    assert broken.code == 1 and "the release is damaged" in broken.err


def test_json_is_alone_on_stdout(sif_batch: Run, root: Path) -> None:
    done = sif_batch("run", root, "--json")
    assert len(done.out.splitlines()) == 1 and json.loads(done.out)["outcome"] == "unchanged"


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_stdout_that_is_closed_or_full_costs_no_traceback(
    sif_batch: Callable[..., Finished], photos: Callable[[int], Path], tmp_path: Path, form: str
) -> None:
    assert sif_batch("run", photos(2), "root", "--no-gate").code == 0
    command = f"{sys.executable} -m sif_batch.jobs.cli status root {form}"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def ask(end: str) -> tuple[int, str]:
        """The exit code of the command, and what it said."""
        script = f"{command} {end}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env)
        return done.returncode, done.stderr

    assert ask(">&-") == (0, "")
    assert ask("<&- >&- 2>&-") == (0, "")
    code, told = ask(">/dev/full")
    assert code == 1 and told.startswith("sif-batch: stdout cannot be written (No space left on device); ")
    assert told.count("\n") == 1
    assert "Traceback" not in ask("| true")[1]

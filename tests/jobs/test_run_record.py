"""What a run leaves to be read: events, a summary; and what it takes from a file."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from commands import Finished

from sif_batch.jobs.run_record import EventLog, note_end
from sif_batch.jobs.terminal.summary import summarise
from sif_batch.storage.store import Store

Run = Callable[..., Finished]
Photos = Callable[[int], Path]


def events(root: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (root / "runs" / run / "events.jsonl").read_text().splitlines()]


def test_a_night_from_a_config_file_leaves_events_and_a_summary(sif_batch: Run, photos: Photos, tmp_path: Path) -> None:
    source, root, config = photos(6), tmp_path / "root", tmp_path / "nightly.toml"
    config.write_text(f'root = "{root}"\nsources = ["pics={source}"]\nshard-images = 2\n[run]\nworkers = 1\n')
    night = sif_batch("run", "--config", config, "--json").json
    assert (night["outcome"], night["embedded"]) == ("published", 6)
    run = json.loads((root / "runs" / night["run"] / "run.json").read_bytes())
    assert run["settings"]["workers"] == 1 and run["settings"]["limits"]["shard_images"] == 2
    assert sif_batch("status", "--config", config, "--json").json["sources"][0]["name"] == "pics"

    written = events(root, night["run"])
    names = [event["event"] for event in written if event["event"] not in ("said", "progress")]
    assert names[:2] == ["began", "listed"] and names[-3:] == ["embedded", "published", "ended"]
    assert any(e["event"] == "progress" and e["stage"] == "embedding" and e["done"] == 6 for e in written)
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(written))
    assert written[-1]["seconds"]["embed"] > 0
    summary = (root / "runs" / night["run"] / "summary.txt").read_text()
    assert summary.splitlines()[0] == f"sif-batch {root}: published, 6 images, 6 new, 0 deleted, 0 failed"
    assert "events.jsonl" in summary and "recall@10" in summary

    for text, says in (
        ("[run]\nwokers = 1", "run has no option 'wokers'"),
        ("[rum]", "[rum] is no command"),
        ("root = ", "nightly.toml"),
        ("workers = 0", "workers"),
    ):
        config.write_text(text)
        done = sif_batch("run", root, "--config", config)
        assert done.code == 2 and says in done.err, done.err


def test_a_failed_night_says_why_in_its_summary(sif_batch: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"nothing of the kind")
    assert sif_batch("run", tmp_path / "bad", tmp_path / "root").code == 1
    (run,) = (tmp_path / "root/runs").iterdir()
    summary = (run / "summary.txt").read_text()
    assert summary.startswith(f"sif-batch {tmp_path}/root: error") and "none of the 1 images" in summary
    assert events(tmp_path / "root", run.name)[-1]["outcome"] == "error"
    assert "a defect" in summarise({"outcome": "error", "root": "r", "run": "x"})


def test_the_end_by_a_signal_is_written_down(tmp_path: Path) -> None:
    log = EventLog(Store(str(tmp_path)), "x")
    log.write("began")
    note_end("interrupted", signal="SIGTERM")
    note_end("never written")
    assert [event["event"] for event in events(tmp_path, "x")] == ["began", "interrupted"]


def test_a_signal_in_the_midst_of_a_line_writes_its_own(tmp_path: Path) -> None:
    log = EventLog(Store(str(tmp_path)), "1")
    with log._lock:  # as in `write`, when the handler runs in the same thread
        log.write("interrupted")
    log.close()
    assert json.loads((tmp_path / "runs/1/events.jsonl").read_text())["event"] == "interrupted"

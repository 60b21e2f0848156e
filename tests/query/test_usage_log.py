"""The log of queries and clicks: what it holds, that many may write it, and its summary by hand."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sif_batch.errors import SifBatchError
from sif_batch.query.usage_log import UsageLog, summarise


def ask(log: UsageLog, **changes: Any) -> str:
    given: dict[str, Any] = {"release": "r", "by": "key", "k": 2, "hits": ["a", "b"], "seconds": 0.01}
    return log.asked(**(given | changes))


def test_a_summary_counts_what_was_noted(tmp_path: Path) -> None:
    file = tmp_path / "logs/usage.jsonl"
    log = UsageLog(str(file))
    first = ask(log, key="x", where="width > 5", right=2)
    log.clicked(first, "b", 2)
    log.clicked(first, "a", 1)
    second = ask(log, key="x", seconds=0.03)
    log.clicked(second, "b", 2)
    ask(log, by="image", hits=[], seconds=0.02)
    log.close()
    with file.open("a") as more:
        more.write('{"what": "query"}\nno json\n{"what": "other", "id": 1}\n[]\n{"what": "query", "id": "cut of')
    found = summarise(str(file))
    day = json.loads(file.read_text().splitlines()[0])["time"][:10]
    assert found == {
        "queries": 3,
        "clicks": 3,
        "click_share": round(2 / 3, 4),
        "mean_rank": round(5 / 3, 2),
        "by": {"image": 1, "key": 2},
        "without_hits": 1,
        "filtered": 1,
        "marked": 1,
        "seconds": {"median": 0.02, "p95": 0.029},
        "days": [{"day": day, "queries": 3, "clicks": 3}],
        "most_asked": [{"key": "x", "times": 2}],
        "most_clicked": [{"key": "b", "times": 2}, {"key": "a", "times": 1}],
        "unreadable_lines": 5,
    }


def test_an_empty_log_has_a_summary(tmp_path: Path) -> None:
    UsageLog(str(tmp_path / "log")).close()
    found = summarise(str(tmp_path / "log"))
    assert found["queries"] == found["clicks"] == 0 and found["seconds"] is None and found["click_share"] is None


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    logs = [UsageLog(str(tmp_path / "log")) for _ in range(4)]

    def work(log: UsageLog) -> None:
        for i in range(50):
            log.clicked(ask(log, hits=[f"{'k' * 500}{i}"] * 20), "a", 1)

    threads = [threading.Thread(target=work, args=[log]) for log in logs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    found = summarise(str(tmp_path / "log"))
    assert (found["queries"], found["clicks"], found["click_share"], found["unreadable_lines"]) == (400, 400, 1.0, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match="/dev/full: the log cannot be written .No space left on device."):
        ask(UsageLog("/dev/full"))


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = UsageLog(str(tmp_path / "log")), os.write
    ask(log)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(SifBatchError, match="cannot be written"):
            ask(log)
    ask(log)
    ask(log)
    found = summarise(log.path)
    assert (found["queries"], found["unreadable_lines"]) == (3, 1)
    log.close()


def test_a_place_that_holds_no_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match="cannot be read"):
        summarise(str(tmp_path / "nothing"))
    with pytest.raises(SifBatchError, match="no log can be written there"):
        UsageLog(str(tmp_path))

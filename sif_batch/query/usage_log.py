"""Usage: a log of what was asked and clicked, one JSON object a line, and its summary.

It holds keys of images in the release and filters, never an image, its bytes or the name of an upload. Lines are
appended whole, so that any number of threads and processes may write one file.
"""

import errno
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sif_batch.digests import canonical_json
from sif_batch.errors import SifBatchError

MOST = 10  # keys that a summary names
NEEDS = {"query": {"id", "by", "hits", "seconds", "time"}, "click": {"id", "key", "rank", "time"}}


class UsageLog:
    """A log to write to. Raises SifBatchError where the file cannot be written."""

    def __init__(self, path: str):
        self.path = path
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self._cut_off = False  # in the midst of a line
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise SifBatchError(
                f"{path}: no log can be written there ({error.strerror})", remedy="give a file that this user may write"
            ) from error

    def asked(
        self,
        *,
        release: str,
        by: str,
        k: int,
        hits: Sequence[str],
        seconds: float,
        key: str | None = None,
        where: str | None = None,
        right: int = 0,
        wrong: int = 0,
        expand: int = 0,
    ) -> str:
        """Note a query, and return its id for `clicked`. by: key, image, images, vector or marks; hits: keys, best
        first; right, wrong: how many marks it was asked with."""
        query = secrets.token_hex(8)
        line = {"what": "query", "id": query, "release": release, "by": by, "k": k, "hits": list(hits)}
        line |= {"seconds": round(seconds, 4), "key": key, "where": where}
        self._append(line | {"right": right, "wrong": wrong, "expand": expand})
        return query

    def clicked(self, query: str, key: str, rank: int) -> None:
        """Note that a hit of a query was opened. rank: from 1."""
        self._append({"what": "click", "id": query, "key": key, "rank": rank})

    def _append(self, line: dict[str, Any]) -> None:
        """Raises SifBatchError where the line cannot be written, or not whole."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = canonical_json(line | {"time": now}) + b"\n"
        try:
            written = os.write(self._file, b"\n" + data if self._cut_off else data)
            self._cut_off = written < len(data)
            if self._cut_off:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise SifBatchError(
                f"{self.path}: the log cannot be written ({error.strerror})", remedy="make room for it, or leave it out"
            ) from error

    def close(self) -> None:
        os.close(self._file)


@dataclass
class _Tally:
    queries: int = 0
    clicks: int = 0
    unreadable: int = 0
    without_hits: int = 0
    filtered: int = 0
    marked: int = 0
    seconds: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    by: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    clicked: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    days: dict[str, Counter[str]] = field(default_factory=dict)


def summarise(path: str) -> dict[str, Any]:
    """What a log says. Raises SifBatchError where it cannot be read.

    click_share: of the queries, those of which a hit was opened; unreadable_lines: of another program, or cut off.
    """
    tally = _Tally()
    for line in _lines(path):
        if line is None:
            tally.unreadable += 1
        elif line["what"] == "query":
            _note_query(tally, line)
        else:
            tally.clicks += 1
            tally.ranks.append(int(line["rank"]))
            tally.clicked[line["key"]] += 1
            tally.answered.add(line["id"])
        if line is not None:
            tally.days.setdefault(line["time"][:10], Counter())[line["what"]] += 1
    return {
        "queries": tally.queries,
        "clicks": tally.clicks,
        "click_share": round(len(tally.answered) / tally.queries, 4) if tally.queries else None,
        "mean_rank": round(float(np.mean(tally.ranks)), 2) if tally.ranks else None,
        "by": dict(sorted(tally.by.items())),
        "without_hits": tally.without_hits,
        "filtered": tally.filtered,
        "marked": tally.marked,
        "seconds": _seconds(tally.seconds),
        "days": [{"day": d, "queries": n["query"], "clicks": n["click"]} for d, n in sorted(tally.days.items())],
        "most_asked": _most(tally.asked),
        "most_clicked": _most(tally.clicked),
        "unreadable_lines": tally.unreadable,
    }


def _note_query(tally: _Tally, line: dict[str, Any]) -> None:
    tally.queries += 1
    tally.by[line["by"]] += 1
    tally.without_hits += not line["hits"]
    tally.filtered += line.get("where") is not None
    tally.marked += bool(line.get("right") or line.get("wrong"))
    tally.seconds.append(float(line["seconds"]))
    if line.get("key") is not None:
        tally.asked[line["key"]] += 1


def _lines(path: str) -> Iterator[dict[str, Any] | None]:
    """The lines of a log, None for one that cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    yield line if NEEDS[line["what"]] <= set(line) else None
                except (ValueError, KeyError, TypeError):
                    yield None
    except OSError as error:
        raise SifBatchError(
            f"{path}: cannot be read ({error.strerror})", remedy="give the file that --feedback-log named"
        ) from error


def _seconds(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(float(np.median(values)), 4), "p95": round(float(np.percentile(values, 95)), 4)}


def _most(counter: Counter[str]) -> list[dict[str, Any]]:
    ranked = sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST]
    return [{"key": key, "times": times} for key, times in ranked]

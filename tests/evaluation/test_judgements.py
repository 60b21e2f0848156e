"""Marks kept as judgements, and what evaluate makes of them."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import Row, build_release, entries_of, make_root, paths

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.judgements import SCHEMA, keep_judgements, read_judgements
from sif_batch.evaluation.relevance import read_relevance
from sif_batch.jobs.reports.evaluate import evaluate
from sif_batch.query.index import Index

ROWS = [Row(path) for path in paths(120)]
KEYS = [row.encoded()["key"] for row in ROWS]


def judged(place: Path) -> list[tuple[str, str, bool]]:
    return [(row["query"], row["key"], row["right"]) for row in read_judgements(str(place)).to_pylist()]


def test_the_newest_mark_of_a_pair_holds(tmp_path: Path) -> None:
    assert keep_judgements(str(tmp_path / "marks"), "q", []) is None
    for right, wrong in ((["a", "b"], ["c"]), (["c"], ["b"]), (["a"], ["d"])):
        assert keep_judgements(str(tmp_path / "marks"), "q", right, wrong)
    keep_judgements(str(tmp_path / "marks"), "p", ["a"])
    assert judged(tmp_path / "marks") == [
        ("p", "a", True),
        ("q", "a", True),
        ("q", "b", False),
        ("q", "c", True),
        ("q", "d", False),
    ]
    (one, *_) = sorted((tmp_path / "marks").iterdir())
    assert judged(one) in ([("p", "a", True)], [("q", key, key != "c") for key in "abc"], judged(one))
    assert len(list((tmp_path / "marks").iterdir())) == 4


def test_many_may_keep_marks_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for i in range(10):
            keep_judgements(str(tmp_path / "marks"), f"q{number}", [f"k{i}"])

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert judged(tmp_path / "marks") == [(f"q{n}", f"k{i}", True) for n in range(4) for i in range(10)]


def test_what_are_no_judgements_says_so(tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match="it holds no judgements"):
        read_judgements(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(SifBatchError, match=r"x.parquet: these are no judgements"):
        read_judgements(str(tmp_path))
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(SifBatchError, match="these are no judgements") as raised:
        read_judgements(str(tmp_path / "x.parquet"))
    assert ", ".join(SCHEMA.names) in raised.value.remedy
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SifBatchError, match="cannot be kept there"):
        keep_judgements(str(tmp_path / "file" / "marks"), "q", ["a"])


def test_evaluate_takes_judgements_as_labels(tmp_path: Path) -> None:
    build_release(make_root(tmp_path / "root", ROWS), entries_of(ROWS), tmp_path)
    index, marks = Index.open(tmp_path / "root"), str(tmp_path / "marks")
    hits = [hit.key for hit in index.search(key=KEYS[0], k=5)]
    keep_judgements(marks, KEYS[0], hits[:2], hits[2:])
    keep_judgements(marks, "upload-0123", [KEYS[7], KEYS[9], "gone/x.jpg"], [KEYS[11]])
    found = read_relevance(index, marks)
    pairs = {(KEYS[0], hits[0]), (KEYS[0], hits[1]), (KEYS[7], KEYS[9])}
    expected = {tuple(sorted(index.rows_of(list(pair)).tolist())) for pair in pairs}
    assert found.partners is not None and found.unmatched == ["gone/x.jpg"]
    assert {tuple(sorted((row, int(o)))) for row, others in found.partners.items() for o in others} == expected
    report = evaluate(str(tmp_path / "root"), marks).report
    assert report["n_queries"] == len(set().union(*expected)) and 0 < report["map"] <= 1
    keep_judgements(str(tmp_path / "others"), "x", ["y"], ["z"])
    with pytest.raises(SifBatchError, match="none of its 1 names is an image of the release, such as y"):
        read_relevance(index, str(tmp_path / "others"))

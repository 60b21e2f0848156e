"""Search in bulk: every row of the table is what one query after the other gets, in whatever pieces."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import DIMENSION, Row, build_release, entries_of, make_root, paths, vector_of

from sif_batch.errors import SifBatchError
from sif_batch.jobs.asking.bulk import search_in_bulk
from sif_batch.jobs.asking.search import Asking
from sif_batch.jobs.progress import Reporter
from sif_batch.query.bulk import HITS
from sif_batch.query.index import Index

ROWS = [Row(path) for path in paths(500)]
ASKED = [vector_of(path).astype(np.float32) for path in paths(40, 500)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("bulk")
    build_release(make_root(folder / "root", ROWS, 300), entries_of(ROWS), folder, "ivf-pq")
    return Index.open(folder / "root")


def write_vectors(file: Path, vectors: list[Any], group: int = 7, **columns: Any) -> str:
    table = pa.table({"embedding": pa.array(vectors, pa.list_(pa.float32())), **columns})
    pq.write_table(table, file, row_group_size=group)
    return str(file)


def bulk(index: Index, queries: str, out: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    report = search_in_bulk(index.url, queries, str(out), Asking(**options), Reporter())
    table = pq.read_table(out)
    assert table.schema.equals(HITS) and not Path(f"{out}.parts").exists()
    return report, table.to_pylist()


def test_a_table_of_vectors_is_answered_as_one_by_one(index: Index, tmp_path: Path) -> None:
    names = [f"q{i}" for i in range(len(ASKED))]
    queries = write_vectors(tmp_path / "v.parquet", ASKED, id=names)
    for options in ({"k": 4}, {"k": 3, "where": "folder = 'b'", "expand": 2}):
        report, rows = bulk(index, queries, tmp_path / "hits.parquet", **options)
        expected = [
            (name, rank, hit.key, hit.uri, pytest.approx(hit.similarity, abs=1e-6), None)
            for name, vector in zip(names, ASKED, strict=True)
            for rank, hit in enumerate(index.search(vector=vector, **options), 1)
        ]
        assert [tuple(row.values()) for row in rows] == expected
        assert (report["queries"], report["failed"], report["hits"]) == (40, 0, len(rows))


def test_rows_that_cannot_ask_say_why(index: Index, tmp_path: Path) -> None:
    vectors = [ASKED[0], None, [1.0, 2.0], [np.nan] * DIMENSION, ASKED[1]]
    report, rows = bulk(index, write_vectors(tmp_path / "v.parquet", vectors, 2), tmp_path / "h.parquet", k=2)
    assert [(row["query"], row["rank"], row["error"]) for row in rows] == [
        ("0", 1, None),
        ("0", 2, None),
        ("1", None, "it has no vector"),
        ("2", None, f"a vector of 2 numbers, expected {DIMENSION}"),
        ("3", None, "a vector that is not finite"),
        ("4", 1, None),
        ("4", 2, None),
    ]
    assert (report["queries"], report["failed"], report["hits"]) == (5, 3, 4)
    assert all(row["key"] is None and row["similarity"] is None for row in rows if row["error"])


def test_a_run_that_breaks_off_goes_on_and_gives_the_same_bytes(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sif_batch.jobs.asking.bulk as module

    queries, out = write_vectors(tmp_path / "v.parquet", ASKED), tmp_path / "hits.parquet"
    bulk(index, queries, out, k=5)
    whole = out.read_bytes()
    out.unlink()
    spread = module.spread
    asked: list[int] = []

    def some(function: str, common: Any, elements: Any, *rest: Any) -> None:
        asked.append(len(elements))
        spread(function, common, elements[: 2 if len(asked) == 1 else None], *rest)
        if len(asked) == 1:
            raise SifBatchError("broken off")

    monkeypatch.setattr(module, "spread", some)
    with pytest.raises(SifBatchError, match="broken off"):
        bulk(index, queries, out, k=5)
    assert not out.exists()
    bulk(index, queries, out, k=5)
    assert asked == [6, 4] and out.read_bytes() == whole


@pytest.mark.parametrize("kind", ["list", "large", "fixed", "half"])
def test_vectors_may_stand_in_any_list_of_numbers(index: Index, tmp_path: Path, kind: str) -> None:
    types = {
        "list": pa.list_(pa.float64()),
        "large": pa.large_list(pa.float32()),
        "fixed": pa.list_(pa.float32(), DIMENSION),
        "half": pa.list_(pa.float16()),
    }
    vectors = [vector.astype(np.float16) if kind == "half" else vector.tolist() for vector in ASKED[:3]]
    pq.write_table(pa.table({"v": pa.array(vectors, types[kind])}), tmp_path / "v.parquet")
    _, rows = bulk(index, str(tmp_path / "v.parquet"), tmp_path / "h.parquet", k=1)
    assert [row["key"] for row in rows] == [index.search(vector=vector, k=1)[0].key for vector in ASKED[:3]]


def test_what_cannot_ask_is_told_in_a_line(index: Index, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"no")
    good = write_vectors(tmp_path / "good.parquet", ASKED)
    pq.write_table(pa.table({"a": pa.array([[1.0]]), "b": pa.array([[1.0]])}), tmp_path / "two.parquet")
    for queries, options, says in (
        (str(tmp_path / "gone.parquet"), {}, "gone.parquet: cannot be read"),
        (str(tmp_path / "no.parquet"), {}, "no.parquet: cannot be read"),
        (str(tmp_path / "two.parquet"), {}, "a, b: several columns hold vectors"),
        (write_vectors(tmp_path / "short.parquet", [[1.0, 2.0]]), {}, rf"vectors of 2 numbers, .* have {DIMENSION}"),
        (write_vectors(tmp_path / "none.parquet", []), {}, "it holds no rows"),
        (str(tmp_path / "empty"), {}, "empty"),
        (good, {"where": "colour = 1"}, "no column 'colour'"),
        (good, {"where": "folder ="}, "breaks off at its end"),
        (good, {"k": 0}, "k is 0"),
    ):
        with pytest.raises(SifBatchError, match=says):
            bulk(index, queries, tmp_path / "hits.parquet", **options)
        assert not (tmp_path / "hits.parquet").exists()
    with pytest.raises(SifBatchError, match="expected the name of a Parquet file"):
        bulk(index, good, tmp_path / "hits.csv")


@pytest.mark.slow
def test_many_pieces_go_through_beam_to_the_same_table(index: Index, tmp_path: Path) -> None:
    few = bulk(index, write_vectors(tmp_path / "few.parquet", ASKED, 40), tmp_path / "few_hits.parquet", k=3)[1]
    queries = write_vectors(tmp_path / "many.parquet", ASKED, 2)
    assert bulk(index, queries, tmp_path / "many_hits.parquet", k=3)[1] == few

"""Duplicates against brute force over all pairs, whichever index finds them, in whatever pieces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from synthetic import Row, build_release, entries_of, make_root, paths, vector_of

from sif_batch.errors import SifBatchError
from sif_batch.jobs.asking.duplicates import find_duplicates
from sif_batch.jobs.cli.main import cli
from sif_batch.jobs.progress import Reporter
from sif_batch.query import duplicates
from sif_batch.query.index import Index
from sif_batch.storage.store import Store

COUNT, THRESHOLD = 700, 0.97


@dataclass(frozen=True)
class Made(Row):
    """A row whose bytes are those of another, or that has more pixels."""

    sha_of: str = ""
    width: int = 300

    def encoded(self) -> dict[str, Any]:
        sha = Row(self.sha_of).encoded()["sha256"] if self.sha_of else Row(self.path).encoded()["sha256"]
        return super().encoded() | {"sha256": sha, "width": self.width}


def collection() -> list[Row]:
    """Images with copies, with neighbours at all distances around the threshold, a chain, and 50 nearly the same."""
    random = np.random.default_rng(5)
    rows: list[Row] = [Made(path) for path in paths(COUNT)]
    for i in range(8):
        rows.append(Made(f"copy/{i}.jpg", vector=vector_of(rows[i].path), sha_of=rows[i].path))
    rows.append(Made("copy/0again.jpg", vector=vector_of(rows[0].path), sha_of=rows[0].path))
    for i in range(60):
        noise = random.normal(size=48) * (0.05 + 0.01 * i)
        rows.append(Made(f"near/{i}.jpg", vector=vector_of(rows[100 + i].path).astype(float) + noise, width=400 - i))
    start, way = vector_of("chain").astype(float), random.normal(size=48)
    rows += [Made(f"chain/{i}.jpg", vector=start + 0.2 * i * way) for i in range(12)]
    rows += [Made(f"burst/{i}.jpg", vector=vector_of("burst") + random.normal(size=48) * 0.01) for i in range(50)]
    return rows


ROWS = collection()


@pytest.fixture(scope="module", params=["flat", "ivf-pq", "hnsw"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("duplicates")
    store = make_root(folder / "root", ROWS, 300)
    build_release(store, entries_of(ROWS), folder, request.param, max_rows=500)
    return Index.open(folder / "root")


def similarities(index: Index) -> np.ndarray:
    x = index.vectors_of(np.arange(len(index))).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x @ x.T)


def expected_groups(index: Index, threshold: float) -> set[frozenset[int]]:
    """Brute force: connected components of all pairs, by scipy."""
    sha = np.array(index.column("sha256").to_pylist())
    joined = (similarities(index) >= threshold) | (sha[:, None] == sha[None])
    _, label = connected_components(coo_array(joined), directed=False)
    groups = (np.flatnonzero(label == number) for number in range(label.max() + 1))
    return {frozenset(members.tolist()) for members in groups if len(members) > 1}


def run_parts(index: Index, work: Path, threshold: float = THRESHOLD) -> Any:
    for number in range(duplicates.part_count(index)):
        duplicates.find_part(lambda report: None, index.url, str(work), threshold, number)
    return duplicates.group(index, Store(str(work)), threshold)


def test_groups_are_those_of_brute_force(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PART_ROWS", 150)
    found = run_parts(index, tmp_path / "work")
    row = {key: i for i, key in enumerate(index.column("key").to_pylist())}
    groups: dict[int, list[dict[str, Any]]] = {}
    for member in found.to_pylist():
        groups.setdefault(member["group"], []).append(member)
    assert {frozenset(row[m["key"]] for m in group) for group in groups.values()} == expected_groups(index, THRESHOLD)
    assert [len(group) for group in groups.values()] == sorted((len(g) for g in groups.values()), reverse=True)
    assert list(groups) == list(range(len(groups))) and len(groups[0]) == 50
    exact, near = similarities(index), 0
    for group in groups.values():
        first = group[0]
        assert [member["kind"] == "first" for member in group] == [True] + [False] * (len(group) - 1)
        for member in group:
            near += member["kind"] == "near"
            assert (member["kind"] == "near") == (member["sha256"] != first["sha256"])
            assert member["similarity"] == pytest.approx(exact[row[first["key"]], row[member["key"]]], abs=1e-5)
    assert near > 60 and sum(m["kind"] == "exact" for m in found.to_pylist()) == 9
    wide = next(group for group in groups.values() if group[0]["key"] == "photos/near/0.jpg")
    assert wide[1]["key"] == f"photos/{ROWS[100].path}"  # 400 pixels across stand before 300


def test_pieces_and_interruptions_change_nothing(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_parts(index, tmp_path / "whole")
    monkeypatch.setattr(duplicates, "PART_ROWS", 90)
    assert run_parts(index, tmp_path / "work").equals(whole)
    files = {file.name: file.read_bytes() for file in (tmp_path / "work").iterdir()}
    assert len(files) == duplicates.part_count(index) > 5
    for name in sorted(files)[::3]:
        (tmp_path / "work" / name).unlink()
    assert run_parts(index, tmp_path / "work").equals(whole)
    assert {file.name: file.read_bytes() for file in (tmp_path / "work").iterdir()} == files


def test_another_threshold_or_release_takes_no_part_of_this_one(index: Index) -> None:
    names = {duplicates.pairs_name(index, threshold, 0) for threshold in (0.9, 0.97, 1.0)}
    assert len(names) == 3


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_none_says_so(index: Index, threshold: float) -> None:
    with pytest.raises(SifBatchError, match="the threshold is .*, expected a similarity above 0 and up to 1"):
        duplicates.check_threshold(index, threshold)


def test_the_command_writes_a_table_and_leaves_nothing_beside_it(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "found" / "groups.parquet"
    report = find_duplicates(index.url, THRESHOLD, str(out), None, Reporter())
    table = pq.read_table(out)
    assert table.equals(run_parts(index, tmp_path / "work"))
    assert [file.name for file in out.parent.iterdir()] == ["groups.parquet"]
    assert report["groups"] == len(expected_groups(index, THRESHOLD)) and report["largest"] == 50
    assert report["groups"] + report["exact"] + report["near"] == len(table)
    for arguments, says in (
        (("--threshold", 1.5), "1.5 is not in the range"),
        (("--threshold", "much"), "'much' is not a valid float"),
        ((), "Missing option '--threshold'"),
        (("--threshold", 0.9, "--out", "groups.txt"), "expected the name of a Parquet file"),
        (("--threshold", 0.9, "--contact-sheet", "sheet.txt"), "no picture ends with '.txt'"),
    ):
        done = CliRunner().invoke(cli, ["duplicates", index.url, *map(str, arguments)])
        assert done.exit_code in (1, 2) and says in f"{done.output}{done.exception}"

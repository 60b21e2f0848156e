"""Search among the rows that a filter lets through, against brute force: every family, several segments, rows that
are anywhere and rows that lie all in one place."""

import numpy as np
import pyarrow.compute as pc
import pytest
from synthetic import Live, Row, assemble, entries_of, find_live, make_root, measure, paths, quantize, vector_of

from sif_batch.errors import SifBatchError
from sif_batch.query import filtered_search
from sif_batch.query.index import Index
from sif_batch.query.segments import OperatingPoint
from sif_batch.storage.store import Store

COUNT = 1200
FAMILIES = ("flat", "ivf-flat", "ivf-pq", "ivf-rabitq", "hnsw")
ASKED = np.stack([vector_of(path) for path in paths(12, COUNT)]).astype(np.float32)


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Live]:
    rows = [Row(path) for path in paths(COUNT)]
    store = make_root(tmp_path_factory.mktemp("selection") / "root", rows, 500)
    return store, find_live(store, entries_of(rows))


@pytest.fixture(scope="module", params=[*FAMILIES, "codes alone", "graph alone"])
def index(
    request: pytest.FixtureRequest, rooted: tuple[Store, Live], tmp_path_factory: pytest.TempPathFactory
) -> Index:
    """A release in two segments."""
    store, live = rooted
    folder = tmp_path_factory.mktemp("release") / "release"
    alone = {"codes alone": ("ivf-flat", 48), "graph alone": ("hnsw", 310)}
    family, limit = alone.get(request.param, (request.param, None))
    record = quantize(store, live, family, max_bytes_per_row=limit, recall=0.9)
    manifest, placed = assemble(store, live, record, folder, 700)
    figures, _ = measure(store, live, record, folder, manifest, placed)
    found = Index(Store(str(folder)), "", manifest | figures)
    assert manifest["segments"] == 2 and found.segments.keeps_rows == (request.param not in alone)
    return found


def similarities(index: Index) -> np.ndarray:
    """(queries, rows) float64: the cosine of the vectors that went in."""
    x = np.stack([vector_of(key.removeprefix("photos/")) for key in index.column("key").to_pylist()]).astype(float)
    q = ASKED.astype(float)
    return (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)


def chosen(index: Index) -> dict[str, np.ndarray]:
    """Rows to look among: few and many, spread and all far from the first query."""
    random = np.random.default_rng(3)
    farthest = np.argsort(similarities(index)[0])
    return {
        "one": np.array([700]),
        "few": np.sort(random.choice(COUNT, 9, replace=False)),
        "some": np.sort(random.choice(COUNT, 150, replace=False)),
        "most": np.sort(random.choice(COUNT, 1000, replace=False)),
        "far away": np.sort(farthest[:200]),
        "first segment": np.arange(700),
        "all": np.arange(COUNT),
    }


@pytest.mark.parametrize("few", [filtered_search.FEW, 0], ids=["as it is", "codes probed"])
def test_what_is_found_among_some_is_what_brute_force_finds(
    index: Index, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtered_search, "FEW", few)
    exact = similarities(index)
    for name, among in chosen(index).items():
        found = 0
        for query, (rows, got) in enumerate(index.ranked(ASKED, 10, among=among)):
            best = among[np.argsort(-exact[query, among], kind="stable")[:10]]
            assert len(rows) == len(best) == len(set(rows)) and np.isin(rows, among).all(), name
            assert np.allclose(got, exact[query, rows], atol=0.03) and (np.diff(got) <= 0).all()
            found += len(set(rows) & set(best))
        wanted = 10 if index.segments.keeps_rows and few else 9 if index.segments.keeps_rows else 7
        assert found >= wanted / 10 * min(10, len(among)) * len(ASKED) - 2, name


def test_as_many_that_qualify_are_scanned_as_of_an_index(index: Index) -> None:
    if index.spec.family in ("flat", "hnsw"):
        pytest.skip("without cells")
    reduced = index.ranking.reduced(index.transform.apply(ASKED))
    for among in (chosen(index)["some"], chosen(index)["far away"]):
        found = filtered_search.Selection(index.segments, among)
        for segment in index.segments.filled:
            inside, sizes = found._by_cell[segment.start]
            assert (
                sizes.sum() == segment.size
                and inside.sum() == np.isin(np.arange(segment.size) + segment.start, among).sum()
            )
            for query in reduced[:, None]:
                _, cells = segment.index.quantizer.search(query, segment.index.nlist)
                probed = found._probe(segment, OperatingPoint(2, 1), query).nprobe
                wanted = min(sizes[cells[0, :2]].sum(), inside.sum())
                assert inside[cells[0, :probed]].sum() >= wanted
                assert probed == 2 or inside[cells[0, : probed - 1]].sum() < wanted


def test_all_that_qualify_are_found_where_more_are_asked_for(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    for few in (filtered_search.FEW, 0):
        monkeypatch.setattr(filtered_search, "FEW", few)
        for among in (chosen(index)["few"], chosen(index)["far away"]):
            for rows, _ in index.ranked(ASKED, 400, among=among):
                assert sorted(rows.tolist()) == among.tolist()
        assert [len(rows) for rows, _ in index.ranked(ASKED[:2], 5, among=np.empty(0, np.int64))] == [0, 0]


def test_a_row_is_left_out_of_its_own_answer_among_others(index: Index) -> None:
    if not index.segments.keeps_rows:
        pytest.skip("codes alone: no rows to ask with")
    among = chosen(index)["some"]
    asked = among[:5]
    for row, (rows, _) in zip(asked, index.neighbours_of(asked, len(among), among=among), strict=True):
        assert sorted([row, *rows]) == among.tolist()


def test_a_filter_in_words_gives_the_rows_that_it_names(index: Index) -> None:
    folder = np.array(index.column("folder").to_pylist())
    rows = index.rows_where("folder = 'b' or folder like 'd%'")
    assert rows.tolist() == np.flatnonzero(np.isin(folder, ["b", "d"])).tolist()
    for where in ("folder in ('b', 'd')", pc.field("folder").isin(["b", "d"])):
        hits = index.search(vector=ASKED[0], k=20, where=where)
        found = index.ranked(ASKED[:1], 20, among=rows)[0][0]
        assert [hit.key for hit in hits] == index.column("key").take(found).to_pylist()
        assert {hit.columns["folder"] for hit in hits} == {"b", "d"}
    assert index.search(vector=ASKED[0], where="width > 5000") == []
    with pytest.raises(SifBatchError, match="no column 'colour'"):
        index.search(vector=ASKED[0], where="colour = 'red'")

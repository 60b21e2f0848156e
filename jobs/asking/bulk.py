"""Search in bulk: a source of images or a Parquet file of vectors asks, piece by piece, and one table is the answer."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sif_batch.config import IndexSettings, RootRecord
from sif_batch.digests import canonical_json, digest
from sif_batch.encoders.installed import install_encoder
from sif_batch.errors import SifBatchError
from sif_batch.jobs.asking.search import Asking
from sif_batch.jobs.fan_out import spread
from sif_batch.jobs.nightly.embed_stage import embed_collection
from sif_batch.jobs.nightly.prepare import list_collection
from sif_batch.jobs.progress import Reporter
from sif_batch.jobs.result_files import whole_path, working_folder, write_result
from sif_batch.jobs.settings import RunSettings
from sif_batch.ledger.catalog_cache import load_catalog
from sif_batch.ledger.parts import part_path
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.pipelines.engines import check_options
from sif_batch.query.bulk import ANSWERS, HITS, Columns, find_columns, read_queries
from sif_batch.query.index import Index
from sif_batch.sources.listing import parse_sources
from sif_batch.storage.store import Store
from sif_batch.storage.urls import open_filesystem

PART_COLUMNS = Columns("embedding", "key", "error")


@dataclass(frozen=True)
class Pieces:
    """What asks. folder, files, groups: row groups of Parquet files (-1: whole files); version: what these hold;
    rows: of each file those that count, None: all."""

    folder: str
    columns: Columns
    files: list[str]
    groups: list[int]
    version: str
    rows: list[np.ndarray] | None = None


def search_in_bulk(
    place: str, queries: str, out: str, asking: Asking, reporter: Reporter, beam: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What `--json` prints. What stands from an interrupted run is taken as it is. Raises SifBatchError."""
    began = time.monotonic()
    beam = tuple(check_options(beam))
    index = Index.open(place)
    if asking.where is not None:
        index.rows_where(asking.where)
    vectors = _vectors_of(index, queries)
    with working_folder(out) as work:
        pieces = vectors or _embed(index, queries, work, beam, reporter)
        names = [_name(index, asking, pieces, number) for number in range(len(pieces.files))]
        done = work.sizes("hits")
        elements = [
            {"file": file, "group": group, "name": f"hits/{name}"}
            for file, group, name in zip(pieces.files, pieces.groups, names, strict=True)
            if name not in done
        ]
        common = {"place": index.url, "work": work.url, "folder": pieces.folder, "columns": asdict(pieces.columns)}
        common |= {"k": asking.k, "where": asking.where, "expand": asking.expand}
        spread("sif_batch.query.bulk:answer_piece", common, elements, "asking", (work, "hits"), reporter, beam)
        counts = {"queries": 0, "failed": 0, "hits": 0}
        write_result(out, HITS, _answers(work, names, pieces, counts))
    return {"release": index.release, **counts, "out": whole_path(out), "seconds": round(time.monotonic() - began, 2)}


def _name(index: Index, asking: Asking, pieces: Pieces, number: int) -> str:
    """The file of a piece's hits, named by all that decides it."""
    made_by = [index.release, asking.k, asking.where, asking.expand, pieces.version]
    made_by += [pieces.files[number], pieces.groups[number]]
    return f"{digest(canonical_json(made_by))[:32]}.parquet"


def _answers(work: Store, names: list[str], pieces: Pieces, counts: dict[str, int]) -> Iterator[pa.Table]:
    """The hits of each piece, counted as they pass."""
    for number, name in enumerate(names):
        table = pq.read_table(pa.BufferReader(work.read(f"hits/{name}"))).cast(ANSWERS)
        if pieces.rows is not None:
            table = table.filter(pc.is_in(table["row"], pa.array(pieces.rows[number])))
            table = table.sort_by([("query", "ascending"), ("row", "ascending"), ("rank", "ascending")])
        counts["queries"] += pc.count_distinct(table["row"]).as_py()
        counts["failed"] += pc.count(table["error"]).as_py()
        counts["hits"] += pc.count(table["key"]).as_py()
        yield table.select(HITS.names)


def _vectors_of(index: Index, queries: str) -> Pieces | None:
    """The pieces of a Parquet file of vectors; None where it is something else."""
    if not queries.endswith(".parquet") or any(sign in queries for sign in "*?["):
        return None
    fs, path = open_filesystem(queries)
    try:
        info = fs.info(path)
        if info["type"] != "file":
            return None
        with fs.open(path, "rb") as file:
            metadata, schema = pq.read_metadata(file), pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise SifBatchError(
            f"{queries}: cannot be read ({' '.join(str(error).split())[:200]})", remedy="check the path of --queries"
        ) from error
    columns = find_columns(schema)
    if columns is None:
        return None
    if not metadata.num_rows:
        raise SifBatchError(f"{queries}: it holds no rows", remedy="give a file of vectors, a row for each query")
    for _, vectors, _ in read_queries(queries, columns, 0):
        if (sizes := {len(v) for v in vectors if v is not None}) and index.dimension not in sizes:
            raise SifBatchError(
                f"{queries}: vectors of {min(sizes)} numbers, the release's have {index.dimension}",
                remedy=f"ask with vectors of the release's encoder, {index.manifest['quantizer']['encoder']}",
            )
        break
    folder, _, name = whole_path(queries).rpartition("/")
    version = [info["size"], *(str(info.get(field)) for field in ("mtime", "ETag", "etag", "LastModified"))]
    groups = list(range(metadata.num_row_groups))
    return Pieces(folder, columns, [name] * len(groups), groups, digest(canonical_json(version)))


def _embed(index: Index, queries: str, work: Store, beam: tuple[str, ...], reporter: Reporter) -> Pieces:
    """Images as the parts of a ROOT of their own inside the working folder, by the release's encoder."""
    encoder = index.manifest["quantizer"]["encoder"]
    record = RootRecord(sources=parse_sources((queries,)), encoder=encoder, index=IndexSettings())
    listing = list_collection(record, reporter)
    spec, networks = index.encoder_files()
    root = Store(f"{work.url}/queries-{digest(record.canonical())[:12]}")
    root.create("root.json", record.canonical())
    install_encoder(root, spec, *networks)
    settings = RunSettings(sources=(queries,), root=root.url, beam=beam)
    embed_collection(root, record, listing, listing.save(root), settings, reporter)
    catalog = load_catalog(root, spec.id, keep=False)
    rows = catalog.rows.take(pa.array(standing_rows(listing.entries, catalog).row))
    part, row = rows["part"].to_numpy(), rows["row"].to_numpy()
    first = {int(number): min(rows["key"].filter(pa.array(part == number)).to_pylist()) for number in np.unique(part)}
    order = sorted(first, key=lambda number: first[number])
    return Pieces(
        root.url,
        PART_COLUMNS,
        [part_path(spec.id, catalog.parts[number]) for number in order],
        [-1] * len(order),
        "",
        [row[part == number].astype(np.int64) for number in order],
    )

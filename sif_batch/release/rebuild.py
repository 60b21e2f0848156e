"""What a release that stands was made of, so that it can be assembled again without some of its rows."""

from typing import Any

import numpy as np
import pyarrow as pa

from sif_batch.digests import canonical_json, digest
from sif_batch.index.quantizer import QuantizerRecord, load_quantizer, read_record
from sif_batch.index.train_quantizer import encode_queries
from sif_batch.ledger.catalog import Catalog
from sif_batch.release.columns import OWN_COLUMNS, field_name, fields_of
from sif_batch.release.manifest import damaged, decided_of, inputs_digest
from sif_batch.storage.store import Store


def read_images(store: Store, release: str) -> pa.Table:
    """images.arrow of a release of ROOT. Raises SifBatchError where it is damaged."""
    name = f"releases/{release}/images.arrow"
    try:
        with store.open(name) as file:
            return pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowException) as error:
        raise damaged(store.path(name)) from error


def released_rows(
    images: pa.Table, gone: np.ndarray, whole: Catalog, after: Catalog, manifest: dict[str, Any]
) -> pa.Table:
    """The rows of a release but those that are gone, (n,) bool, as `live.live_rows` gives them, in their order.

    images, manifest: of the release; whole: a catalog with all its rows; after: the one to assemble from. Fields are
    those of the parts if by them its inputs are what the manifest says: if not, they came from elsewhere too, and are
    taken from its columns. Raises LookupError if a part is gone.
    """
    before = _rows_of(images, whole)
    fields = before["fields"]
    if inputs_digest(before, whole.fingerprints, decided_of(manifest)) != manifest["inputs"]:
        fields = _fields_of(images)
    kept = pa.array(~gone)
    rows = _rows_of(images.filter(kept), after)
    return rows.set_column(rows.column_names.index("fields"), "fields", fields.filter(kept)).combine_chunks()


def _rows_of(images: pa.Table, catalog: Catalog) -> pa.Table:
    """The catalog rows of some rows of a release, with their uri, in its order."""
    good = pa.array(np.flatnonzero(catalog.rows["error_kind"].is_null().to_numpy()))
    contents = catalog.rows.select(["key", "sha256"]).take(good).append_column("row", good)
    contents = contents.set_column(0, "key", contents["key"].cast(pa.large_string()))
    wanted = images.select(["key", "sha256"]).append_column("place", pa.array(np.arange(len(images))))
    found = wanted.join(contents, ["key", "sha256"], join_type="inner")
    place, row = found["place"].to_numpy(), found["row"].to_numpy()
    order = np.lexsort((row, place))
    _, first = np.unique(place[order], return_index=True)
    if len(first) != len(images):
        raise LookupError(f"{len(images) - len(first)} of its rows stand in no part")
    rows = catalog.rows.take(pa.array(row[order][first]))
    return rows.append_column("uri", images["uri"].cast(pa.string())).combine_chunks()


def _fields_of(images: pa.Table) -> pa.Array:
    """The columns that a release has of its own, as fields of its rows."""
    own = [name for name in images.column_names if name not in OWN_COLUMNS]
    return fields_of(images.select(own).rename_columns([field_name(name) for name in own]))


def without_queries(store: Store, name: str, gone: np.ndarray) -> QuantizerRecord:
    """The quantizer without some of its held-out queries, (q,) bool, under a name of its own."""
    quantizer = load_quantizer(store, name)
    kept = np.flatnonzero(~gone)
    keys = [quantizer.query_keys[number] for number in kept.tolist()]
    queries = encode_queries(keys, quantizer.queries[kept], quantizer.radii[kept])
    record = quantizer.record.model_copy(
        update={
            "id": f"{quantizer.spec.family}-{digest(canonical_json([name, kept.tolist()]), 16)}",
            "held_out": len(kept),
            "files": quantizer.record.files | {"queries.parquet": digest(queries)},
        }
    )
    for file in record.files:
        data = queries if file == "queries.parquet" else store.read(f"quantizers/{name}/{file}")
        store.create(f"quantizers/{record.id}/{file}", data)
    store.create(f"quantizers/{record.id}/quantizer.json", record.canonical())
    return read_record(store, record.id)

"""What a takedown concerns: the images that are meant, and all of a ROOT that holds them."""

import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.index.quantizer import load_quantizer
from sif_batch.index.training_sample import likeness
from sif_batch.jobs.upkeep.explain import find_key
from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.catalog_cache import load_whole
from sif_batch.ledger.parts import read_embeddings
from sif_batch.ledger.tombstones import Erased, entry_hash, read_erased
from sif_batch.release.history import read_top, sealed_releases
from sif_batch.release.manifest import read_manifest
from sif_batch.release.rebuild import read_images
from sif_batch.sources.listing import LISTING_SCHEMA, Listing, keys_of, listing_names
from sif_batch.sources.names import hash_of
from sif_batch.storage.store import Store


@dataclass(frozen=True)
class Erasure:
    """What is to be erased, and what holds it.

    contents: those named now; catalogs: by encoder, with all rows; releases: of each that holds some, or whose
    quantizer does, the rows to erase, (n,) bool; queries: the same of quantizers; trained_on: those that were trained
    on some, among others; names: keys and uris.
    """

    erased: Erased
    contents: frozenset[str]
    catalogs: dict[str, Catalog]
    releases: dict[str, np.ndarray] = field(default_factory=dict)
    queries: dict[str, np.ndarray] = field(default_factory=dict)
    trained_on: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def gone(self, catalog: Catalog) -> np.ndarray:
        """Which rows are to be erased: (n,) bool."""
        return self.erased.holds(catalog.rows) | _has_content(catalog.rows, self.contents)

    def parts(self, encoder: str) -> list[str]:
        """The parts with rows to erase, or of containers to erase."""
        catalog = self.catalogs[encoder]
        numbers = np.unique(catalog.rows["part"].to_numpy()[self.gone(catalog)]).tolist()
        return [catalog.parts[number] for number in sorted({*numbers, *self.containers(catalog)})]

    def containers(self, catalog: Catalog) -> set[int]:
        """The numbers of the parts that are of containers to erase."""
        keys = keys_of(catalog.spans)
        gone = {key for key in keys.unique().to_pylist() if self.erased.has_key(key)}
        return {
            part for part, key in zip(catalog.spans["part"].to_pylist(), keys.to_pylist(), strict=True) if key in gone
        }

    def images(self) -> list[dict[str, str | None]]:
        """key and sha256 of the rows to erase, in order."""
        rows = [c.rows.select(["key", "sha256"]).filter(pa.array(self.gone(c))) for c in self.catalogs.values()]
        found = {(row["key"], row["sha256"]) for table in rows for row in table.to_pylist()}
        pairs = sorted((key, sha256.hex() if sha256 else "") for key, sha256 in found)
        return [{"key": key, "sha256": sha256 or None} for key, sha256 in pairs]


def find_erasure(store: Store, record: RootRecord, names: Sequence[str]) -> Erasure:
    """What is to be erased for these names, and of what was erased before and still stands somewhere."""
    catalogs = {encoder: load_whole(store, encoder, keep=False) for encoder in store.sizes("parts")}
    before = read_erased(store)
    wanted, keys = _wanted(store, record, names, catalogs, before)
    work = Erasure(before | wanted, wanted.contents, catalogs)
    work.names.update(keys, (str(image["key"]) for image in work.images()))
    _look_into_quantizers(store, work)
    top = read_top(store)
    for release in sealed_releases(store):
        images = read_images(store, release)
        out = work.erased.holds(images)
        if out.any() or read_manifest(store, f"releases/{release}")["quantizer"]["id"] in work.queries:
            work.releases[release] = out
            work.names.update(one for n in ("key", "uri") for one in images[n].filter(pa.array(out)).to_pylist())
        if top and release == top["release"] and out.all():
            raise SifBatchError(
                f"nothing would be left of the current release of {store.url}", remedy="remove the whole ROOT"
            )
    return work


def _wanted(
    store: Store, record: RootRecord, names: Sequence[str], catalogs: dict[str, Catalog], before: Erased
) -> tuple[Erased, set[str]]:
    """What these names ask for, and the keys among them. Raises SifBatchError for a name that ROOT does not know."""
    listed = listing_names(store)[:1]
    entries = Listing.load(store, listed[0]).entries if listed else LISTING_SCHEMA.empty_table()
    known = [keys_of(entries), *(chunk for catalog in catalogs.values() for chunk in catalog.rows["key"].chunks)]
    keys, contents, held = set[str](), set[str](), set[tuple[int, int]]()
    for name in names:
        if len(name) == 64 and not set(name.lower()) - set(string.hexdigits):
            contents.add(name.lower())
        else:
            keys.add(find_key(name, record, pa.chunked_array(known), before))
    for catalog in catalogs.values():
        files = catalog.rows.filter(
            pc.and_(pa.array(_has_content(catalog.rows, contents)), catalog.rows["member"].is_null())
        )
        for row in files.select(["source", "path", "version"]).to_pylist():
            held.add((entry_hash(**row), len(row["path"].encode())))
    hashes = frozenset((hash_of(key), len(key.encode())) for key in keys)
    return Erased(keys=hashes, contents=frozenset(contents), entries=frozenset(held)), keys


def _has_content(rows: pa.Table, contents: Collection[str]) -> np.ndarray:
    """Which rows are of images of these bytes, whatever became of them: (n,) bool."""
    wanted = pa.array([bytes.fromhex(sha256) for sha256 in contents], pa.binary(32))
    return np.asarray(pc.is_in(rows["sha256"], wanted).to_numpy())


def _look_into_quantizers(store: Store, work: Erasure) -> None:
    """Which keep one of the images as a held-out query, by its key or its vector, and which were trained on one."""
    vectors, looks = set[bytes](), set[int]()
    for encoder, catalog in work.catalogs.items():
        rows = catalog.rows.filter(pa.array(work.gone(catalog)))
        for name in work.parts(encoder):
            numbers, found = read_embeddings(store, encoder, name)
            own = rows["row"].to_numpy()[rows["part"].to_numpy() == catalog.parts.index(name)]
            found = found[np.isin(numbers, own)]
            vectors |= {vector.tobytes() for vector in found}
            looks |= set(likeness(found).tolist()) if len(found) else set()
    for name in store.sizes("quantizers"):
        if not store.exists(f"quantizers/{name}/quantizer.json"):
            continue  # it never was whole
        quantizer = load_quantizer(store, name)
        pairs = zip(quantizer.query_keys, quantizer.queries, strict=True)
        out = [k in work.names or work.erased.has_key(k) or vector.tobytes() in vectors for k, vector in pairs]
        if any(out):
            work.queries[name] = np.array(out)
        if quantizer.index is not None and not looks.isdisjoint(quantizer.seen.tolist()):
            work.trained_on.append(name)

"""Erase: a takedown. What names or shows an image, or was computed from it alone, is written anew without it."""

import contextlib
import json
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import traces
from jobs.candidate import build, quantize_parts
from jobs.embed import settle
from jobs.explain import find_key
from jobs.progress import Reporter
from jobs.settings import RunSettings, open_root
from sif_batch.catalog import Catalog, load_whole, taken_over, without_rows
from sif_batch.config import GateSettings, RootRecord, SifBatchError, canonical_json
from sif_batch.copies import forget
from sif_batch.erased import FOLDER, Erased, add_erased, entry_hash, read_erased
from sif_batch.gate import judge
from sif_batch.gc import remove
from sif_batch.history import publish, read_history, read_top, sealed_releases
from sif_batch.known import known_path
from sif_batch.lease import Lease, check_free, holding
from sif_batch.parts import copy_rows, part_path, read_embeddings
from sif_batch.quantizer import QuantizerRecord, load_quantizer, read_record
from sif_batch.rebuild import read_images, released_rows, without_queries
from sif_batch.release import MANIFEST, decided_of, inputs_digest, read_manifest
from sif_batch.sample import likeness
from sif_batch.sources import LISTING_SCHEMA, Listing
from sif_batch.sources.listing import keys_of, listing_names
from sif_batch.sources.names import hash_of
from sif_batch.storage import Store

RECOUNTED = ("listed", "failed", "failed_by_kind", "stale")


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


def erase(root: str, names: Sequence[str], yes: bool, reporter: Reporter) -> dict[str, Any]:
    """Find, and with `yes` erase, the images of these keys, paths, uris or sha256; `--json` prints what is returned.

    Each step may be done twice: after an interruption the same command finishes. Raises SifBatchError.
    """
    store, record = open_root(root)
    if not yes:
        check_free(store)
        return _report(find_erasure(store, record, names)) | {"erased": False}
    with holding(store, "erase", reporter.say) as lease:
        store, record = open_root(root)
        work = find_erasure(store, record, names)
        report = _report(work)
        add_erased(store, work.erased)
        _copy_parts(store, work)
        replaced = _rebuild(store, record, work, reporter)
        lease.check()
        _publish(store, replaced)
        _forget(store, work)
        _remove(store, lease, work)
        return report | {"erased": True, "replaced": replaced, "release": (read_top(store) or {}).get("release")}


def _report(work: Erasure) -> dict[str, Any]:
    return {
        "images": work.images(),
        "parts": sum(len(work.parts(encoder)) for encoder in work.catalogs),
        "releases": sorted(work.releases),
        "quantizers": sorted(work.queries),
        "trained_on": work.trained_on,
    }


def find_erasure(store: Store, record: RootRecord, names: Sequence[str]) -> Erasure:
    """What is to be erased for these names, and of what was erased before and still stands somewhere."""
    catalogs = {encoder: load_whole(store, encoder, keep=False) for encoder in store.sizes("parts")}
    wanted, keys = _wanted(store, record, names, catalogs)
    work = Erasure(read_erased(store) | wanted, wanted.contents, catalogs)
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
    store: Store, record: RootRecord, names: Sequence[str], catalogs: dict[str, Catalog]
) -> tuple[Erased, set[str]]:
    """What these names ask for, and the keys among them. Raises SifBatchError for a name that ROOT does not know."""
    before, listed = read_erased(store), listing_names(store)[:1]
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


def _copy_parts(store: Store, work: Erasure) -> None:
    """The parts with rows to erase once more, without."""
    for encoder, catalog in work.catalogs.items():
        gone, part = work.gone(catalog) | taken_over(catalog), catalog.rows["part"].to_numpy()
        covering = set(catalog.spans["part"].to_pylist()) - work.containers(catalog)
        for name in work.parts(encoder):
            number = catalog.parts.index(name)
            kept = ~gone[part == number]
            if kept.any() or number in covering:
                copied, data = copy_rows({name: store.read(part_path(encoder, name))}, {name: kept})
                store.create(part_path(encoder, copied), data)


def _rebuild(store: Store, record: RootRecord, work: Erasure, reporter: Reporter) -> dict[str, str | None]:
    """Each release that is concerned once more, without: old id to new, None for one that nothing can be made of."""
    queries = {name: without_queries(store, name, out).id for name, out in work.queries.items()}
    whole = {encoder: load_whole(store, encoder, keep=False) for encoder in work.catalogs}
    after = {encoder: _left(catalog, work, encoder) for encoder, catalog in whole.items()}
    recounted = _recount(store, record, work, after, reporter)
    top = read_top(store)
    dealt_with = {old for entry in read_history(store) for old in entry.get("replaced", {})}
    replaced: dict[str, str | None] = {}
    for release, gone in work.releases.items():
        is_current = bool(top and release == top["release"])
        if release in dealt_with and not is_current:
            continue
        reporter.say(f"release {release[:12]} is assembled again")
        manifest = read_manifest(store, f"releases/{release}")
        encoder, images = manifest["encoder"], read_images(store, release)
        try:
            live = released_rows(images, gone, whole[encoder], after[encoder], manifest)
            quantizer = read_record(store, queries.get(manifest["quantizer"]["id"], manifest["quantizer"]["id"]))
        except (LookupError, SifBatchError) as error:
            if is_current:
                raise SifBatchError(
                    f"the current release cannot be assembled again: {error}",
                    remedy=f"sif-batch run {store.url} makes one without what is erased; then this command once more",
                ) from error
            live = images.slice(0, 0)
        replaced[release] = None
        if len(live):
            decided = decided_of(manifest) | {"rows": len(live)} | recounted(manifest, int(gone.sum()))
            decided["quantizer"] = manifest["quantizer"] | {"id": quantizer.id}
            replaced[release] = _assemble(store, after[encoder], live, quantizer, decided, reporter)
    return replaced


def _left(catalog: Catalog, work: Erasure, encoder: str) -> Catalog:
    """The catalog without what is erased, and without the parts that will go."""
    names = set(work.parts(encoder))
    going = [number for number, name in enumerate(catalog.parts) if name in names]
    gone = work.gone(catalog) | taken_over(catalog) | np.isin(catalog.rows["part"].to_numpy(), going)
    return without_rows(catalog, gone)


def _assemble(
    store: Store,
    catalog: Catalog,
    live: pa.Table,
    quantizer: QuantizerRecord,
    decided: dict[str, Any],
    reporter: Reporter,
) -> str:
    settings = RunSettings(sources=(), root=store.url)
    used = np.unique(live["part"].to_numpy()).tolist()
    quantize_parts(store, quantizer.id, [catalog.parts[number] for number in used], settings, reporter)
    made_by = {*(catalog.fingerprints[number] for number in used), canonical_json(quantizer.fingerprint).decode()}
    manifest = decided | {
        "inputs": inputs_digest(live, catalog.fingerprints, decided),
        "fingerprints": [json.loads(text) for text in sorted(made_by)],
    }
    return build(store, quantizer, catalog.parts, live, manifest, None, {})[0]


def _recount(
    store: Store, record: RootRecord, work: Erasure, after: dict[str, Catalog], reporter: Reporter
) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """How a release's counts change: as the newest listing's, where it was made of that, else by the rows that go."""
    counts: list[dict[str, Any]] = []
    names = listing_names(store)[:1]
    with contextlib.suppress(SifBatchError, KeyError, IndexError):  # the newest listing is not embedded yet
        listing = Listing.load(store, names[0])
        for entries, catalog in (
            (listing, work.catalogs[record.encoder]),
            (work.erased.leave_out(listing), after[record.encoder]),
        ):
            settings = RunSettings(sources=(), root=store.url)
            found = settle(store, entries, names[0], catalog, set(catalog.parts), settings).counts
            counts.append({name: found[name] for name in RECOUNTED} | {"failed": found["failed_before"]})

    def recounted(manifest: dict[str, Any], gone: int) -> dict[str, Any]:
        if len(counts) == 2 and counts[0] == {name: manifest[name] for name in RECOUNTED}:
            return counts[1]
        return {"listed": manifest["listed"] - gone}

    return recounted


def _publish(store: Store, replaced: dict[str, str | None]) -> None:
    """History says what was erased when, and by what each release was replaced."""
    top = read_top(store)
    said = {name for entry in read_history(store) for name in entry.get("erasures", ())}
    new = [name for name in store.sizes(FOLDER) if name not in said]
    if top is None or not (new or replaced):
        return
    release = str(replaced.get(top["release"]) or top["release"])
    passed = not judge(GateSettings(), read_manifest(store, f"releases/{release}"))
    gate = "passed" if passed else "skipped"
    publish(store, release, top, gate, "erase", top["held"], replaced=replaced, erasures=new)


def _forget(store: Store, work: Erasure) -> None:
    """Runs, listings and plans without what is erased."""
    for page in traces.find_pages(store, work.releases, work.names):
        remove(store, page)
    for name, data in traces.find_words(store, work.names):
        store.replace(name, data)
    for old, new, data in traces.find_listings(store, work.erased):
        store.create(new, data)
        remove(store, old)
    for plan in traces.find_plans(store, work.erased, any(work.parts(encoder) for encoder in work.catalogs)):
        remove(store, plan)


def _remove(store: Store, lease: Lease, work: Erasure) -> None:
    """What was made anew goes: parts last, since by them the same command finds what is left to do."""
    for release in work.releases:
        lease.check()
        remove(store, f"releases/{release}", MANIFEST)
        forget(release)
    for name in work.queries:
        lease.check()
        remove(store, f"quantizers/{name}", "quantizer.json")
        remove(store, f"codes/{name}")
    for encoder in work.catalogs:
        remove(store, known_path(encoder))
        for part in work.parts(encoder):
            lease.check()
            for quantizer in store.sizes("codes"):
                remove(store, f"codes/{quantizer}/{part}.parquet")
            remove(store, part_path(encoder, part))
        load_whole(store, encoder)  # its cache anew
    store.sweep(after_s=0)

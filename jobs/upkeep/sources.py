"""Sources: which a ROOT records, and changing that without a run."""

from collections.abc import Sequence
from typing import Any

from sif_batch.config import RootRecord
from sif_batch.errors import SifBatchError
from sif_batch.sources.apart import check_apart
from sif_batch.sources.listing import parse_sources
from sif_batch.storage.lease import holding
from sif_batch.storage.root import open_root, read_record
from sif_batch.storage.store import Store


def list_recorded(root: str) -> dict[str, Any]:
    """{sources: [...]} as ROOT records them."""
    return _report(open_root(root)[1])


def add_sources(root: str, places: Sequence[str], replace: bool, **options: Any) -> dict[str, Any]:
    """Record more sources, or with `replace` others under the same names. The next run lists them."""
    store, _ = open_root(root)
    given = {source.name: source for source in parse_sources(places, **options)}
    with holding(store, "sources") as lease:
        record = _record(store)
        have = {source.name for source in record.sources}
        for name in given:
            if (name in have) != replace:
                what = "there is no source" if replace else "there is a source already"
                verb = "add" if replace else "replace"
                raise SifBatchError(f"{what} named {name!r} in {store.url}", remedy=f"sif-batch sources {verb}")
        merged = {source.name: source for source in record.sources} | given
        check_apart(store, list(merged.values()))
        record = record.model_copy(update={"sources": tuple(merged[name] for name in sorted(merged))})
        lease.check()
        store.replace("root.json", record.canonical())
    return _report(record)


def remove_source(root: str, name: str) -> dict[str, Any]:
    """Forget a source: the next run deletes its images from the index. Their rows stay until gc."""
    store, _ = open_root(root)
    with holding(store, "sources") as lease:
        record = _record(store)
        left = tuple(source for source in record.sources if source.name != name)
        if len(left) == len(record.sources):
            known = ", ".join(source.name for source in record.sources)
            raise SifBatchError(f"there is no source named {name!r} in {store.url}", remedy=f"it has: {known}")
        if not left:
            raise SifBatchError(
                f"{name!r} is the last source of {store.url}", remedy="add another before, or remove the whole ROOT"
            )
        record = record.model_copy(update={"sources": left})
        lease.check()
        store.replace("root.json", record.canonical())
    return _report(record)


def _record(store: Store) -> RootRecord:
    record = read_record(store)
    if record is None:
        raise SifBatchError(f"{store.url} is not a ROOT any more")
    return record


def _report(record: RootRecord) -> dict[str, Any]:
    return {"sources": [source.model_dump(mode="json") for source in record.sources]}

"""What is to do: the spans of listed entries that no standing row covers, and those to try again."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.ledger.catalog import Catalog
from sif_batch.ledger.plan import OPEN, SPAN_SCHEMA
from sif_batch.ledger.reconcile import MOST_ATTEMPTS, Standing
from sif_batch.sources.containers import are_containers
from sif_batch.sources.listing import are_rising


def spans_to_do(entries: pa.Table, standing: Standing, catalog: Catalog, again: np.ndarray | None = None) -> pa.Table:
    """SPAN_SCHEMA: the listing minus the rows that stand.

    again: (n,) bool, the standing rows to do once more; None: those that are to be tried again. A member is tried again
    with the span that it came in.
    """
    again = standing.retry if again is None else again
    attempts, held = catalog.rows["attempt"].to_numpy(), are_containers(entries["path"])
    new = np.flatnonzero(standing.first >= 0)
    in_container = held[standing.entry]
    files = np.flatnonzero(again & ~in_container)
    entry = np.concatenate([new, standing.entry[files]])
    attempt = np.concatenate([np.zeros(len(new), np.int16), attempts[standing.row[files]]]) + np.int16(1)
    first = np.concatenate([standing.first[new], np.zeros(len(files), np.int64)])
    tables = [_spans(entries, standing, entry, first, np.where(held[entry], OPEN, 0), ~held[entry], attempt)]

    members = np.flatnonzero(again & in_container)
    if not len(members) and not len(files) and _in_order(entries):
        return tables[0]  # new ones alone stand as they are listed
    if len(members):
        part = catalog.rows["part"].to_numpy()[standing.row[members]]
        _, distinct = np.unique(part, return_index=True)
        place = pc.index_in(pa.array(part[distinct]), catalog.spans["part"].combine_chunks())
        spans = catalog.spans.take(place)
        last = np.where(spans["end"].to_numpy(), OPEN, spans["last"].to_numpy())
        attempt = spans["attempt"].to_numpy() + np.int16(1)
        made = (standing.entry[members][distinct], spans["first"].to_numpy(), last, np.zeros(len(last), bool), attempt)
        tables.append(_spans(entries, standing, *made))
    todo = pa.concat_tables(tables)
    return todo.take(pc.sort_indices(todo, [("source", "ascending"), ("path", "ascending"), ("first", "ascending")]))


def _in_order(entries: pa.Table) -> bool:
    """Whether entries stand in order of source, then path, as listings do."""
    start, before = 0, ""
    for found in pc.value_counts(entries["source"]).to_pylist():
        source, count = found["values"], found["counts"]
        of_source = entries.slice(start, count)
        start += count
        alone = pc.all(pc.equal(of_source["source"], source)).as_py()
        if source < before or not alone or not are_rising(of_source["path"]):
            return False
        before = source
    return True


def _spans(
    entries: pa.Table,
    standing: Standing,
    entry: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    end: np.ndarray,
    attempt: np.ndarray,
) -> pa.Table:
    whole = len(entry) == len(entries) and np.array_equal(entry, np.arange(len(entries)))
    picked = entries if whole else entries.take(pa.array(entry, pa.int64()))
    columns = [picked[name] for name in ("source", "path", "size", "version")]
    tries = np.minimum(attempt, MOST_ATTEMPTS).astype(np.int8)
    return pa.table([*columns, first, last, end, tries, standing.duplicate[entry]], schema=SPAN_SCHEMA)

"""What is relevant to what: images of one label (a column, the folder, a CSV file), or pairs (CSV, judgements)."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.errors import SifBatchError
from sif_batch.evaluation.judgements import read_judgements
from sif_batch.query.hits import python_values, shown_value
from sif_batch.query.index import Index
from sif_batch.sources.names import keys_by

EXAMPLES = 5
LABELS, PAIRS = ("key", "label"), ("query", "relevant")  # the two headers of a CSV file


@dataclass(frozen=True)
class Relevance:
    """label: (n,) int64, the number in `names` of each row's label, -1 for none; of pairs the same numbers stand for
    nothing and `partners` holds the relevant rows of each row that has some. unmatched: names that no row has.
    """

    label: np.ndarray
    names: list[str]
    partners: dict[int, np.ndarray] | None = None
    unmatched: list[str] = field(default_factory=list)

    def hits(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Which of some rows are relevant to the query, (m,) bool; the query itself is not among them."""
        if self.partners is not None:
            return np.isin(rows, self.partners[query])
        return np.asarray(self.label[rows] == self.label[query])

    def counts(self, inside: np.ndarray | None = None) -> np.ndarray:
        """How many other rows are relevant to each row, (n,) int64; inside: (n,) bool, the rows that can be found."""
        inside = np.ones(len(self.label), bool) if inside is None else inside
        if self.partners is not None:
            counts = np.zeros(len(self.label), np.int64)
            for row, partners in self.partners.items():
                counts[row] = int(inside[partners].sum())
            return counts
        sizes = np.bincount(self.label[inside & (self.label >= 0)], minlength=len(self.names) or 1)
        return np.where(self.label >= 0, sizes[self.label] - inside, 0)

    def queries(self, inside: np.ndarray | None = None) -> np.ndarray:
        """The rows that another one is relevant to, in order, so that a prefix is a uniform sample."""
        return np.flatnonzero(self.counts(inside) > 0)

    def summary(self) -> dict[str, Any]:
        """How much of the collection can be judged, with examples of what cannot."""
        if self.partners is not None:
            labelled, alone, labels = len(self.partners), [], None
        else:
            sizes = np.bincount(self.label[self.label >= 0], minlength=len(self.names))
            alone = [self.names[number] for number in np.flatnonzero(sizes == 1)]
            labelled, labels = int((self.label >= 0).sum()), len(self.names)
        return {
            "images": len(self.label),
            "labelled": labelled,
            "labels": labels,
            "labels_of_one_image": {"count": len(alone), "examples": alone[:EXAMPLES]},
            "unmatched": {"count": len(self.unmatched), "examples": self.unmatched[:EXAMPLES]},
        }


def by_labels(labels: Iterable[object], unmatched: Sequence[str] = ()) -> Relevance:
    """Rows of one label are relevant to each other. labels: (n,), None for a row that has none."""
    values = [None if label is None else str(label) for label in labels]
    names = sorted({value for value in values if value is not None})
    number = {name: i for i, name in enumerate(names)}
    return Relevance(np.array([-1 if v is None else number[v] for v in values], np.int64), names, None, list(unmatched))


def read_relevance(index: Index, labels: str) -> Relevance:
    """What --labels names. Raises SifBatchError where that leaves nothing to judge by."""
    if labels.lower().endswith((".csv", ".tsv")) or os.path.isfile(labels):
        found = _read_csv(index, Path(labels))
    elif labels not in index.columns and (labels.endswith(".parquet") or "://" in labels or os.path.isdir(labels)):
        found = _judged(index, labels)
    else:
        values = [None if value is None else shown_value(value) for value in python_values(index.column(labels))]
        if labels == "folder":
            values = [value and value.rpartition("/")[2] for value in values]
        found = by_labels(values)
    if found.partners is None and len(found.names) < 2:
        what = f"all labelled images have the same label, {found.names[0]!r}" if found.names else "no image has a label"
        raise SifBatchError(f"{labels}: {what}: there is nothing to judge by", remedy="give labels that differ")
    if not len(found.queries()):
        raise SifBatchError(
            f"{labels}: no image shares its label with another: there is nothing to judge by",
            remedy="give coarser labels, or pairs",
        )
    return found


def _judged(index: Index, place: str) -> Relevance:
    """Pairs that people marked as right. The right ones of a query that is no image of the release are relevant to
    each other."""
    rows = read_judgements(place)
    rows = rows.filter(rows["right"])
    row_of = _Names(index)
    partners: dict[int, set[int]] = {}
    missing = []
    groups: dict[str, list[int]] = {}
    for query, key in zip(rows["query"].to_pylist(), rows["key"].to_pylist(), strict=True):
        row = row_of(key)
        groups.setdefault(query, []).extend([] if row is None else [row])
        missing += [key] if row is None else []
    for query, good in groups.items():
        asked = row_of(query)
        for row in good if asked is None else [asked]:
            for other in good:
                _relate(partners, row, other)
    _check_matched(place, partners, missing or rows["query"].to_pylist())
    return _of_pairs(len(index), partners, missing)


def _relate(partners: dict[int, set[int]], row: int, other: int) -> None:
    if row != other:
        partners.setdefault(row, set()).add(other)
        partners.setdefault(other, set()).add(row)


def _of_pairs(rows: int, partners: dict[int, set[int]], missing: Sequence[str]) -> Relevance:
    arrays = {row: np.array(sorted(others), np.int64) for row, others in sorted(partners.items())}
    return Relevance(np.full(rows, -1), [], arrays, sorted(set(missing)))


def _read_csv(index: Index, path: Path) -> Relevance:
    header, rows = _rows(path)
    row_of = _Names(index)
    found = [(row_of(name), value) for name, value in rows]
    if header == PAIRS:
        partners: dict[int, set[int]] = {}
        missing = [name for (row, _), (name, _) in zip(found, rows, strict=True) if row is None]
        for row, value in found:
            other = row_of(value)
            if other is None:
                missing.append(value)
            elif row is not None:
                _relate(partners, row, other)
        _check_matched(path, partners, missing)
        return _of_pairs(len(index), partners, missing)
    missing = [name for (row, _), (name, _) in zip(found, rows, strict=True) if row is None]
    label: dict[int, str] = {}
    for (row, value), (name, _) in zip(found, rows, strict=True):
        if row is not None and label.setdefault(row, value) != value:
            raise SifBatchError(f"{path}: {name} has two labels: {label[row]!r} and {value!r}", remedy="leave one")
    _check_matched(path, label, missing)
    return by_labels((label.get(row) for row in range(len(index))), missing)


def _check_matched(path: Path | str, found: dict[int, Any], missing: list[str]) -> None:
    if not found:
        raise SifBatchError(
            f"{path}: none of its {len(missing)} names is an image of the release, such as {', '.join(missing[:3])}",
            remedy="name images by key, by uri or by their path inside the source",
        )


def _rows(path: Path) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    """The header and the two columns that it names."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            first = [name.strip().lower() for name in next(reader, [])]
            wanted = next((pair for pair in (LABELS, PAIRS) if set(pair) <= set(first)), None)
            if wanted is None:
                raise SifBatchError(
                    f"{path}: its first line is {','.join(first)!r}", remedy="begin it with key,label or query,relevant"
                )
            places = [first.index(name) for name in wanted]
            rows = list(_pick(reader, places, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SifBatchError(f"{path}: cannot be read ({error})", remedy="give a CSV file in UTF-8") from error
    if not rows:
        raise SifBatchError(f"{path}: it holds a header and nothing else", remedy="add a line for each image")
    return wanted, rows


def _pick(reader: Iterable[list[str]], places: list[int], path: Path) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(reader, 2):
        if row and len(row) <= max(places):
            raise SifBatchError(f"{path}: line {number} has {len(row)} fields", remedy="give each line all columns")
        if row:
            yield row[places[0]].strip(), row[places[1]].strip()


class _Names:
    """Rows by key, by uri, or by path inside the source where that is one image."""

    def __init__(self, index: Index):
        self._row: dict[str, int] = {}
        inside: dict[str, list[int]] = {}
        for row, key in enumerate(index.column("key").to_pylist()):
            self._row[key] = row
            inside.setdefault(key.partition("/")[2], []).append(row)
        uris = pc.cast(index.column("uri"), pa.string()).to_pylist()
        others = [(uri, row) for row, uri in enumerate(uris)]
        others += [(path, rows[0]) for path, rows in inside.items() if len(rows) == 1]
        for name, row in others:
            self._row.setdefault(name, row)

    def __call__(self, name: str) -> int | None:
        return next((self._row[one] for one in (name, *keys_by(name)) if one in self._row), None)

"""Shard to part: read, decode, infer, write. `embed_shard` runs in a child process that may die of an image."""

import time
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from sif_batch.digests import canonical_json
from sif_batch.embedding.child_cache import erased_before, load_encoder, open_known
from sif_batch.embedding.threads import PendingImage, Report, Row, ShardStats, ShardThreads
from sif_batch.failures import ImageError
from sif_batch.ledger.parts import container_spans, encode_part, part_path
from sif_batch.ledger.plan import OPEN, Shard, part_name, read_shard
from sif_batch.machine.arithmetic import embedding_fingerprint
from sif_batch.machine.devices import Lane
from sif_batch.sources.containers import Member, container_kind
from sif_batch.sources.names import hash_of, key_of, member_key
from sif_batch.sources.reading import check_unchanged, read_container, read_file
from sif_batch.storage.store import Store

BEAT_S = 10.0


def embed_shard(
    report: Report,
    root: str,
    plan: str,
    shard: int,
    lane: Lane,
    lost: dict[int, str],
    suspects: list[int],
    broken: tuple[int, str] | None = None,
) -> ShardStats:
    """Make the part of one shard, or the parts of one container, unless they stand. Runs in the child.

    lost: images known to end the process, as "kind:message"; suspects: images to try alone; broken: the ordinal of a
    container behind which reading it ends the process, and the "kind:message" of that.
    Reports ("start", (image, the one decoded before it)), ("decoded", image) and ("done", (images, failures)); while a
    container is read ("read", the last ordinal so far).
    """
    store = Store(root)
    work = read_shard(store, plan, shard)
    encoder = load_encoder(root, work.encoder_id, lane.device)
    known, erased = open_known(root, work.encoder_id, lane.device, plan), erased_before(root, plan)
    with ShardThreads(encoder, lane.threads, work.limits, known, erased, lost, suspects, report) as threads:
        if container_kind(work.spans[0]["path"]) is not None:
            _embed_container(store, work, threads, report, broken)
        elif store.exists(part_path(work.encoder_id, work.part)):
            report(("done", (range(len(work.spans)), 0)))
        else:
            for number, span in enumerate(work.spans):
                threads.add(_file_image(work, number, span))
            _write(store, work, work.part, work.spans, list(threads.take().values()), threads)
        return threads.stats


def _file_image(work: Shard, number: int, span: dict[str, Any]) -> PendingImage:
    def read() -> bytes:
        if span["duplicate"]:
            raise ImageError(
                "duplicate_key", "another file of the source has the same key: its name, escaped and in Unicode NFC"
            )
        source, limit = work.sources[span["source"]], work.limits.max_bytes
        return read_file(source, span["path"], span["size"], span["version"], limit)

    return PendingImage(number, _new_row(span, key_of(span["source"], span["path"])), read)


def _embed_container(
    store: Store, work: Shard, threads: ShardThreads, report: Report, broken: tuple[int, str] | None
) -> None:
    """The container's images as successive parts, from where the last one ended."""
    (span,) = work.spans
    source, path, version = work.sources[span["source"]], span["path"], span["version"]
    first = _skip_made(store, work, span, report)
    if first is None:
        return
    last, count, size, own = first - 1, 0, 0, None
    told = time.monotonic()

    def on_read() -> None:
        """Say that reading goes on, where a long stretch has no images."""
        nonlocal told
        if time.monotonic() - told > BEAT_S:
            told = time.monotonic()
            report(("read", last))

    def write(end: bool) -> bool:
        """Write what came since `first` as a part; whether to go on."""
        nonlocal own
        rows = threads.take()
        try:
            check_unchanged(source, path, version)
        except ImageError as error:
            rows, own, end = {}, error, True
        named = {row["key"]: row for _, row in sorted(rows.items())}  # of two with one name the last wins
        kept = list(named.values())
        if own is not None:
            row = _new_row(span, key_of(span["source"], path))
            kept.append(row | {"error_kind": own.kind, "error": str(own)})
        name = part_name(work.encoder_id, [span | {"first": first}], work.limits)
        made = span | {"first": first, "last": last, "end": end}
        _write(store, work, name, [made], kept, threads, len(rows) - len(named))
        return not end

    try:
        report(("read", last))
        _stop_where_it_broke(last, broken)
        for piece in read_container(source, path, version, first, work.limits.max_bytes, on_read):
            if span["last"] != OPEN and piece.last > span["last"]:
                write(end=False)
                return
            if span["last"] == OPEN and (count >= work.limits.shard_images or size >= work.limits.shard_bytes):
                if not write(end=False):
                    return
                first, count, size = last + 1, 0, 0
            for member in piece.members:
                if threads.erased.has_key(member_key(source.name, path, member.name)):
                    continue
                threads.add(image := _member_image(span, member))
                count, size = count + 1, size + image.size + len(image.row["fields"] or "")
            last = piece.last
            report(("read", last))
            _stop_where_it_broke(last, broken)
    except ImageError as error:
        own = error
    write(end=span["last"] == OPEN or own is not None)


def _stop_where_it_broke(last: int, broken: tuple[int, str] | None) -> None:
    if broken is not None and last >= broken[0]:
        kind, _, message = broken[1].partition(":")
        raise ImageError(kind, message)


def _skip_made(store: Store, work: Shard, span: dict[str, Any], report: Report) -> int | None:
    """Where to begin, past the parts that an earlier try made; None: all stand."""
    first = int(span["first"])
    while store.exists(
        path := part_path(work.encoder_id, part_name(work.encoder_id, [span | {"first": first}], work.limits))
    ):
        with store.open(path) as file:
            parquet = pq.ParquetFile(file)
            report(("done", (range(parquet.metadata.num_rows), 0)))
            (_, _, _, _, last, end, _, _) = container_spans(parquet.schema_arrow.metadata)[0]
        if end or span["last"] != OPEN:
            return None
        first = last + 1
    return first


def _member_image(span: dict[str, Any], member: Member) -> PendingImage:
    def read() -> bytes:
        if isinstance(member.data, ImageError):
            raise member.data
        return member.data

    row = _new_row(span, member_key(span["source"], span["path"], member.name))
    row |= {"member": member.name, "fields": canonical_json(member.fields).decode() if member.fields else None}
    return PendingImage(member.ordinal, row, read, len(member.data) if isinstance(member.data, bytes) else 0)


def _new_row(span: dict[str, Any], key: str) -> Row:
    row: Row = dict.fromkeys(("member", "sha256", "width", "height", "fields", "embedding", "error_kind", "error"))
    row |= {name: span[name] for name in ("source", "path", "version", "attempt")}
    return row | {"key": key, "hash": hash_of(key)}


def _write(
    store: Store,
    work: Shard,
    name: str,
    spans: Sequence[dict[str, Any]],
    rows: list[Row],
    threads: ShardThreads,
    superseded: int = 0,
) -> None:
    started = time.perf_counter()
    data = encode_part(rows, spans, work.encoder_id, embedding_fingerprint(threads.encoder.fingerprint), superseded)
    store.create(part_path(work.encoder_id, name), data)
    threads.stats.seconds["write"] += time.perf_counter() - started

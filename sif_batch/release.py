"""The release: assembled from the live rows' codes, sealed by a digest of all that it is, published, verified."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.codes import codes_path, read_codes
from sif_batch.columns import column_types, make_columns
from sif_batch.config import SifBatchError, Source, canonical_json
from sif_batch.kernels import import_faiss
from sif_batch.quantizer import Quantizer, array_bytes
from sif_batch.storage import Store, sha256_of

SEGMENT_ROWS = 16 * 2**20
OLDEST_FAISS = "1.15"  # the oldest that was tried
MANIFEST = "release.json"
ID = re.compile(r"^[0-9a-f]{64}$")
TABLE_ROWS = 65_536  # rows in a batch of images.arrow


def inputs_digest(live: pa.Table, fingerprints: Sequence[str], decided: dict[str, Any]) -> str:
    """What a release is made of, however it lies in parts: equal inputs make an equal release.

    live: the rows in order; fingerprints: by part number; decided: encoder, quantizer, settings, counts.
    """
    distinct = sorted(set(fingerprints))
    made_by = np.array([distinct.index(text) for text in fingerprints], np.int16)[live["part"].to_numpy()]
    used = [distinct[rank] for rank in np.unique(made_by)]
    columns = live.select(["key", "sha256", "uri", "width", "height", "fields"])
    table = columns.append_column("made_by", pa.array(np.unique(made_by, return_inverse=True)[1].astype(np.int16)))
    sink = _Hashing()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    sink.write(canonical_json([used, decided]))
    return sink.sha256.hexdigest()


class _Hashing:
    """A file to write to that keeps only the digest."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.sha256.update(data)

    def flush(self) -> None: ...
    def close(self) -> None: ...


def segment_ends(hashes: np.ndarray, max_rows: int) -> np.ndarray:
    """Where segments end: equal ranges of the hash, a power of two of them, the fewest that hold `max_rows` at most.

    hashes: (n,) uint64 in order. Returns (segments,) int64, the last is n.
    """
    bits = 0
    while True:
        bounds = np.array([(i + 1) << (64 - bits) for i in range(2**bits - 1)], np.uint64)
        ends = np.append(np.searchsorted(hashes, bounds), len(hashes))
        if np.diff(ends, prepend=0).max(initial=0) <= max_rows:
            return ends
        bits += 1


@dataclass(frozen=True)
class Placed:
    """What the gate needs of a part: near and near_distance as in Codes; released: (n,) the release row of each
    row of its codes, -1 for a dead one."""

    near: np.ndarray
    near_distance: np.ndarray
    released: np.ndarray


def assemble(
    store: Store, into: Path, quantizer: Quantizer, parts: Sequence[str], live: pa.Table, max_rows: int = SEGMENT_ROWS
) -> list[Placed]:
    """Write segments, images.arrow, quantizer and encoder of a release; the codes of the live rows must stand.

    live: catalog rows with uri, in order of (hash, key). Returns what the gate needs of each part with live rows.
    """
    spec = quantizer.spec
    part, row = live["part"].to_numpy(), live["row"].to_numpy()
    ends = segment_ends(live["hash"].to_numpy(), max_rows)
    starts = np.concatenate([[0], ends[:-1]])
    rows: list[np.ndarray] = []
    code: list[np.ndarray] = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        folder = into / f"segments/{number:03d}"
        folder.mkdir(parents=True)
        shape = (int(end - start), spec.dimension)
        # open_memmap cannot make an empty file
        if shape[0]:
            rows.append(np.lib.format.open_memmap(folder / "rows.npy", "w+", np.dtype(spec.rows), shape))
            _reserve(folder / "rows.npy")
        else:
            np.save(folder / "rows.npy", np.empty(shape, spec.rows))
            rows.append(np.empty(shape, spec.rows))
        code.append(np.empty((shape[0], quantizer.ivf.sa_code_size() if quantizer.ivf else 0), np.uint8))

    placed = []
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(len(parts) + 1))
    for number in np.unique(part):
        at = order[bounds[number] : bounds[number + 1]]  # release rows of this part
        codes = read_codes(store, spec, quantizer.record.id, parts[number])
        source = np.searchsorted(codes.numbers, row[at])
        if not np.isin(row[at], codes.numbers).all():
            raise SifBatchError(
                f"{codes_path(quantizer.record.id, parts[number])} is not of its part",
                remedy="remove that file and run again",
            )
        segment = np.searchsorted(ends, at, side="right")
        for s in np.unique(segment):
            mine = segment == s
            rows[s][at[mine] - starts[s]] = codes.rerank[source[mine]]
            code[s][at[mine] - starts[s]] = codes.code[source[mine]]
        released = np.full(len(codes.numbers), -1, np.int64)
        released[source] = at
        placed.append(Placed(codes.near, codes.near_distance, released))

    for number, (segment_rows, segment_code) in enumerate(zip(rows, code, strict=True)):
        if isinstance(segment_rows, np.memmap):
            segment_rows.flush()
        if quantizer.ivf is not None:
            write_index(quantizer, segment_code, into / f"segments/{number:03d}/index.faiss")
    write_images(live, into / "images.arrow")
    _copy_encoder(store, spec.encoder, into / "encoder")
    if quantizer.ivf is not None:
        assert quantizer.mean is not None and quantizer.components is not None
        (into / "quantizer").mkdir()
        (into / "quantizer/mean.npy").write_bytes(array_bytes(quantizer.mean))
        (into / "quantizer/components.npy").write_bytes(array_bytes(quantizer.components))
    return placed


def _reserve(path: Path) -> None:
    """Take the file's blocks now: writing to a mapped file on a full disk would end the process by SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_index(quantizer: Quantizer, code: np.ndarray, path: Path) -> None:
    """A FastScan index of these codes, (n, code size). Ids are row numbers of the segment.

    The codes go into a plain IVFPQ first: `add_sa_codes` corrupts memory on a FastScan index.
    """
    faiss = import_faiss()
    plain = faiss.clone_index(quantizer.ivf)
    if len(code):
        plain.add_sa_codes(code, np.arange(len(code)))
    faiss.write_index(faiss.IndexIVFPQFastScan(plain), str(path))


def write_images(live: pa.Table, path: Path) -> None:
    """images.arrow: who each row is, and its columns; uncompressed, to be mapped."""
    member = pc.replace_substring_regex(live["member"], r"^(\./+)+", "")
    inside = pc.case_when(
        pc.make_struct(member.is_null()), live["path"], pc.binary_join_element_wise(live["path"], member, "/")
    )
    folder = pc.replace_substring_regex(inside, "/?[^/]*$", "")
    wide = {name: live[name].cast(pa.large_string()) for name in ("key", "uri", "source")}
    table = pa.table(
        {
            "key": wide["key"],
            "hash": live["hash"],
            "uri": wide["uri"],
            "sha256": live["sha256"],
            "source": wide["source"],
            "folder": folder.cast(pa.large_string()),
            "width": live["width"],
            "height": live["height"],
        }
    )
    types = column_types(live["fields"])
    named = [pa.field(f"{name}_" if name in table.column_names else name, type_) for name, type_ in types.items()]
    schema = pa.schema([*table.schema, *named])
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, max(1, len(table)), TABLE_ROWS):
            rows = table.slice(start, TABLE_ROWS)
            own = make_columns(live["fields"].slice(start, TABLE_ROWS), types)
            writer.write_table(pa.table([*rows.columns, *own], schema=schema).combine_chunks())


def _copy_encoder(store: Store, encoder_id: str, into: Path) -> None:
    into.mkdir()
    lowered = ["fp32.onnx"] if store.exists(f"encoders/{encoder_id}/fp32.onnx") else []
    for name in ("model.onnx", *lowered, "encoder.json"):
        if store.local:
            shutil.copyfile(store.path(f"encoders/{encoder_id}/{name}"), into / name)
        else:
            (into / name).write_bytes(store.read(f"encoders/{encoder_id}/{name}"))


def seal(folder: Path, manifest: dict[str, Any]) -> str:
    """Write release.json: `manifest` and the size and sha256 of every file. Returns the release id."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    data = canonical_json(manifest | {"files": files})
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_manifest(store: Store, folder: str = "") -> dict[str, Any]:
    """The release.json in `folder`. Raises SifBatchError if it cannot be read."""
    name = f"{folder}/{MANIFEST}" if folder else MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(store.read(name))
        return manifest
    except (ValueError, OSError) as error:
        raise SifBatchError(
            f"{store.path(name)}: cannot be read ({error})", remedy="sif-batch verify says what is damaged"
        ) from error


def check_release(store: Store, folder: str = "") -> dict[str, Any]:
    """The manifest of a release whose files are there, each of its size. Raises SifBatchError, naming what is not."""
    prefix = f"{folder}/" if folder else ""
    manifest = read_manifest(store, folder)
    name = os.path.basename(store.path(folder))
    if ID.match(name) and hashlib.sha256(canonical_json(manifest)).hexdigest() != name:
        raise damaged(store.path(prefix + MANIFEST))
    for file, wanted in manifest["files"].items():
        path = store.path(prefix + file)
        try:
            fine = store.fs.size(path) == wanted["size"]
        except FileNotFoundError:
            fine = False
        if not fine:
            raise damaged(path)
    return manifest


def damaged(path: str) -> SifBatchError:
    return SifBatchError(
        f"{path}: missing or altered, the release is damaged",
        remedy="sif-batch verify lists all damage; remove the release's folder and the same run makes it again",
    )


def find_damage(store: Store, folder: str = "") -> list[dict[str, str]]:
    """Every file of a release that is missing or not what release.json says, with the reason."""
    prefix = f"{folder}/" if folder else ""
    try:
        data = store.read(prefix + MANIFEST)
        files = [(path, int(file["size"]), str(file["sha256"])) for path, file in json.loads(data)["files"].items()]
    except FileNotFoundError:
        return [{"file": prefix + MANIFEST, "reason": "missing"}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [{"file": prefix + MANIFEST, "reason": f"cannot be read ({type(error).__name__}: {error})"}]
    damaged = []
    name = os.path.basename(store.path(folder))
    if ID.match(name) and hashlib.sha256(data).hexdigest() != name:
        damaged.append({"file": prefix + MANIFEST, "reason": "altered: its sha256 is not the release's id"})
    for path, size, sha256 in files:
        if reason := _damage(store, prefix + path, size, sha256):
            damaged.append({"file": prefix + path, "reason": reason})
    return damaged


def _damage(store: Store, name: str, size: int, sha256: str) -> str | None:
    try:
        with store.open(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        found_size = store.fs.size(store.path(name))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error})"
    if found_size != size:
        return f"altered: {found_size} bytes, expected {size}"
    return None if found == sha256 else "altered: its sha256 is not the one recorded"


def describe_sources(sources: Sequence[Source]) -> list[dict[str, str]]:
    return [{"name": source.name, "url": source.url} for source in sources]

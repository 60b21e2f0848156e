"""ROOTs of real photos, embedded and published in this process, without Beam: what a page and a search need."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from synthetic import build_release

from sif_batch.config import IndexSettings, RootRecord, Source
from sif_batch.embedding.child_cache import load_encoder
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.sources.listing import LISTING_SCHEMA
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

NAME = "photos"


def publish_photos(
    root: Path, photos: Path, scratch: Path, fields: Callable[[str], dict[str, Any]] = lambda path: {}
) -> str:
    """A release of all photos below a folder, in a ROOT that may have others. fields: their columns, by path.

    Returns the release's id.
    """
    store, encoder = Store(str(root)), built_in_spec("efficientnet_lite0")
    source = Source(name=NAME, url=str(photos))
    if not store.exists("root.json"):
        install_encoder(store, encoder)
        record = RootRecord(sources=(source,), encoder=encoder.id, index=IndexSettings())
        store.create("root.json", record.canonical())
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    write_photo_part(store, encoder.id, photos, paths, fields)
    entries = [{"source": NAME, "path": path, "size": 1, "version": "1"} for path in paths]
    listing = pa.Table.from_pylist(entries, schema=LISTING_SCHEMA)
    return build_release(store, listing, scratch, sources=(source,), encoder=encoder.id)


def write_photo_part(
    store: Store, encoder_id: str, photos: Path, paths: Sequence[str], fields: Callable[[str], dict[str, Any]]
) -> None:
    encoder = load_encoder(store.url, encoder_id, "cpu")
    contents = [(photos / path).read_bytes() for path in paths]
    vectors = encoder.embed(np.stack([encoder.read_image(content)[0] for content in contents])).astype(np.float16)
    rows, spans = [], []
    for path, content, vector in zip(paths, contents, vectors, strict=True):
        key = key_of(NAME, path)
        with Image.open(photos / path) as image:
            width, height = image.size
        span = {"source": NAME, "path": path, "version": "1"}
        named = fields(path)
        rows.append(
            span
            | {"key": key, "member": None, "attempt": 1, "hash": hash_of(key), "width": width, "height": height}
            | {"sha256": hashlib.sha256(content).digest(), "fields": json.dumps(named) if named else None}
            | {"embedding": vector, "error_kind": None, "error": None}
        )
        spans.append(span | {"first": 0, "last": 0, "end": True, "attempt": 1})
    name = hashlib.sha256("".join(paths).encode()).hexdigest()[:32]
    store.create(part_path(encoder_id, name), encode_part(rows, spans, encoder_id, {"made": "here"}))

"""Files of results, whole under their names: pages, and tables made of work that lies beside them until then."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sif_batch.errors import SifBatchError
from sif_batch.storage.store import Store
from sif_batch.storage.temporary_files import temporary_name

ROW_GROUP = 2**20


def store_of(out: str) -> tuple[Store, str]:
    """The folder and name of a Parquet file to be made: a path or fsspec URL. Raises SifBatchError."""
    if not out.endswith(".parquet"):
        raise SifBatchError(f"--out {out}: expected the name of a Parquet file", remedy="end it with .parquet")
    folder, _, name = whole_path(out).rpartition("/")
    return Store(folder or "/"), name


def whole_path(place: str) -> str:
    """A path from the root of the file system; a URL as it is."""
    return os.path.abspath(place) if "://" not in place else place


@contextlib.contextmanager
def working_folder(out: str) -> Iterator[Store]:
    """OUT.parts, where what is done stands until OUT does; it stays where the work breaks off, to go on with."""
    store, name = store_of(out)
    store.check_writable()
    work = _parts_of(store, name)
    yield work
    if work.local:
        shutil.rmtree(work.base, ignore_errors=True)
    elif work.exists():
        work.fs.rm(work.base, recursive=True)


def _parts_of(store: Store, name: str) -> Store:
    return Store(f"{store.url.rstrip('/')}/{name}.parts")


def write_result(out: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """The tables, one after the other, as a Parquet file that appears whole."""
    store, name = store_of(out)
    with _parts_of(store, name).scratch("") as folder:
        file = Path(folder, temporary_name())
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)
        if store.local:
            os.replace(file, store.path(name))
        else:
            store.fs.put_file(str(file), store.path(name))


def write_file(path: str, data: bytes) -> None:
    """A local file, whole. Raises SifBatchError where it cannot be written."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise SifBatchError(
            f"{path}: cannot be written ({error.strerror or error})", remedy="give a place that this user may write"
        ) from error

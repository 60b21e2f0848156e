"""ROOTs and sources lie apart: what a run writes is no image of any source."""

import fnmatch
import os
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sif_batch.config import Source
from sif_batch.errors import SifBatchError
from sif_batch.sources.files import base_of, open_source
from sif_batch.sources.names import path_in
from sif_batch.storage.root import RECORD, is_root
from sif_batch.storage.store import Store
from sif_batch.storage.urls import is_local, open_filesystem, same_place


def check_apart(store: Store, sources: Sequence[Source]) -> None:
    """Refuse a source that is a ROOT, and a ROOT inside a source: each night would index the last one's files."""
    for source in sources:
        url = base_of(source.url)
        fs, base = open_filesystem(url)
        if is_root(fs, base):
            raise SifBatchError(
                f"the source {source.url} is a ROOT, a folder that sif-batch wrote: it holds {RECORD}",
                remedy="name a folder of images, and ROOT last: sif-batch run SOURCE ROOT; if a run was once given the "
                "folder of images as its ROOT, move what it wrote out of there",
            )
        if is_local(fs) != store.local or not (store.local or same_place(source.url, store.url)):
            continue
        root = store.base
        if store.local:
            base, root = os.path.realpath(base), os.path.realpath(root)
        inner = _inside(root, base)
        if inner is not None and may_match_below(source.url.removeprefix(url).lstrip("/"), inner):
            raise SifBatchError(
                f"ROOT {store.url} lies inside the source {source.url}", remedy="give a ROOT outside every source"
            )


def _inside(path: str, folder: str) -> str | None:
    """The path from a folder on; None where it lies elsewhere."""
    start = f"{folder.rstrip('/')}/"
    return path[len(start) :] if f"{path}/".startswith(start) else None


def may_match_below(glob: str, folder: str) -> bool:
    """Whether a glob, empty for all there is, may match the path of a file below this folder."""
    if not glob:
        return True
    left = glob.split("/")
    for name in filter(None, folder.split("/")):
        if not left or "**" in left[0]:
            break
        if not fnmatch.fnmatchcase(name, left.pop(0)):
            return False
    return bool(left)


def leave_roots_out(
    source: Source, found: pa.Table, folders: Iterable[str], say: Callable[[str], None]
) -> tuple[pa.Table, int]:
    """The entries that lie in none of these folders which is a ROOT, each of which is said; and how many do."""
    before = len(found)
    for folder in sorted(set(folders)):
        fs, base = open_source(source)
        if is_root(fs, path_in(fs, f"{base}/{folder}")):
            say(f"{source.url}: {folder} is a ROOT, a folder that sif-batch wrote, and left out")
            found = found.filter(pc.invert(pc.starts_with(found["path"], f"{folder}/")))
    return found, before - len(found)

"""What a question names: the release of a ROOT or folder, the file of an image."""

import os

from sif_batch.errors import SifBatchError
from sif_batch.images.decode import MAX_BYTES
from sif_batch.release.history import read_top
from sif_batch.release.manifest import MANIFEST
from sif_batch.sources.names import local_of
from sif_batch.storage.store import Store
from sif_batch.storage.urls import open_filesystem


def find_release(url: str) -> tuple[Store, str]:
    """The store of a ROOT or release, and the folder in it of the release to open: history's top, or itself."""
    store = Store(url)
    if store.exists(MANIFEST):
        return store, ""
    if not store.exists("root.json"):
        raise SifBatchError(
            f"{store.url}: neither a ROOT nor a release (it holds no root.json or release.json)",
            remedy="give the ROOT that sif-batch run wrote, or a folder in its releases/",
        )
    top = read_top(store)
    if top is None:
        raise SifBatchError(f"{store.url}: no release is published yet", remedy=f"sif-batch run {store.url}")
    return store, f"releases/{top['release']}"


def read_query_image(name: str) -> bytes:
    """The file that is asked with, by its path or URL. Raises SifBatchError where it cannot be read."""
    try:
        path = local_of(name)
        if os.path.lexists(path) and not os.path.isfile(path):
            raise SifBatchError(f"{name}: cannot be read (it is no file)", remedy="give an image file, or a URL of one")
        fs, path = (open_filesystem(name)[0], path) if os.path.lexists(path) else open_filesystem(name)
        if fs.size(path) > MAX_BYTES:
            raise SifBatchError(f"{name}: {fs.size(path)} bytes, the limit is {MAX_BYTES}")
        return bytes(fs.cat_file(path))
    except OSError as error:
        raise SifBatchError(
            f"{name}: cannot be read ({error.strerror or error})", remedy="check the path of the image"
        ) from error

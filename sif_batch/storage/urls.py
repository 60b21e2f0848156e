"""Paths and fsspec URLs: the filesystem that one means, and what no file of ROOT may record."""

import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sif_batch.errors import SifBatchError
from sif_batch.storage.bucket_clients import OPTIONS, open_bucket
from sif_batch.storage.bucket_filesystem import Objects

SECRET = re.compile(r"://[^/@]*:[^/@]*@|[?&](sig|token|x-amz-signature|x-goog-signature)=", re.IGNORECASE)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path inside it. What holds no `://` is a local path."""
    if "://" not in url:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    scheme = url.partition("://")[0]
    try:
        if scheme in OPTIONS:
            fs = Objects(scheme)
            path = fs._strip_protocol(url)
            open_bucket(scheme, path.partition("/")[0])
        else:
            fs, path = fsspec.core.url_to_fs(url)
    except PermissionError as error:
        raise SifBatchError(f"{url}: {error.strerror}", remedy="see docs/engines.md, Credentials") from error
    except ImportError as error:
        raise SifBatchError(
            f"{url}: the client of this store is not installed ({error})",
            remedy="install the extra of the store, such as 'sif-batch[s3]'",
        ) from error
    except ValueError as error:
        raise SifBatchError(f"{url}: {error}", remedy="give a path, or a URL that fsspec knows") from error
    return fs, path


def check_text(url: str) -> None:
    """Refuse a path or URL that no file of ROOT could record: its bytes are not UTF-8, or it holds a credential."""
    if SECRET.search(url):
        raise SifBatchError(
            f"a {url.partition('://')[0]} URL with a credential in it: it would be recorded in ROOT and its releases",
            remedy="give the URL without, and the credential where the store's own tools look for it",
        )
    try:
        url.encode()
    except UnicodeEncodeError as error:
        shown = url.encode(errors="backslashreplace").decode()
        raise SifBatchError(f"{shown}: its name is not UTF-8", remedy="rename it, or make a link to it") from error


def same_place(url: str, other: str) -> bool:
    """Whether two URLs are of one kind of store, whatever it is called: s3 and s3a are one."""
    schemes = [found.partition("://")[0] for found in (url, other)]
    return len({OPTIONS.get(scheme, scheme) for scheme in schemes}) == 1


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)

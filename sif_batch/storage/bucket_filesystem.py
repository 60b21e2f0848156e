"""Objects in a bucket, by the client that costs least (obstore), in fsspec's words. A path is bucket/key."""

import contextlib
import hashlib
import io
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from fsspec import AbstractFileSystem

from sif_batch.storage.bucket_clients import is_exhausted, open_bucket, telling
from sif_batch.storage.bucket_odd_keys import is_odd, open_exactly

TRIES = 4  # of what the client does not repeat by itself
BLOCK = 8 * 2**20  # read or sent at once
MAX_CHUNKS = 9_000  # S3 takes 10,000
MD5 = re.compile(r"^[0-9a-f]{32}$")
PROBED = 5  # objects that tell whether a bucket's ETags are digests
PROBED_BYTES = 2**20
EMPTY: dict[str, list[Any]] = {"objects": [], "common_prefixes": []}


class Objects(AbstractFileSystem):  # type: ignore[misc]
    """The buckets of one scheme. Of fsspec's interface it holds what sif-batch, pyarrow and fsspec itself use."""

    cachable = True

    def __init__(self, scheme: str):
        super().__init__()
        self.protocol = self.scheme = scheme
        self._version = "generation" if scheme in ("gs", "gcs") else "etag"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.partition("://")[2].rstrip("/") if "://" in path else path.rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.scheme}://{self._strip_protocol(name)}"

    def _at(self, path: str) -> tuple[Any, str]:
        """The bucket's client, one that can name the key, and the key."""
        bucket, _, key = self._strip_protocol(path).partition("/")
        return (open_exactly if is_odd(key) else open_bucket)(self.scheme, bucket), key

    def walk_objects(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every object below a folder, its path and info, as they come. A folder's marker ends with a slash."""
        from obstore.exceptions import InvalidPathError

        client, key = self._at(path)
        bucket = self._strip_protocol(path).partition("/")[0]
        last, tries = None, 0
        while True:
            try:
                with telling(path):
                    for objects in client.list(key or None, offset=last, chunk_size=1000):
                        for meta in objects:
                            name, last, tries = f"{bucket}/{meta['path']}", meta["path"], 0
                            slash = "/" if self._is_marker(client, meta) else ""
                            yield name + slash, _info(name, meta)
                return
            except InvalidPathError:
                for meta in open_exactly(self.scheme, bucket).list_after(f"{key}/" if key else "", last):
                    yield f"{bucket}/{meta['path']}", _info(f"{bucket}/{meta['path']}", meta)
                return
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:  # the client repeats a request, but not one whose answer broke off
                tries += 1
                if tries == TRIES:
                    raise
                time.sleep(tries)

    @staticmethod
    def _is_marker(client: Any, meta: Any) -> bool:
        """Whether an object is one that consoles make for a folder: empty, and its key, which the client gives without
        the slash at its end, is nobody's."""
        if meta["size"]:
            return False
        try:
            client.head(meta["path"])
        except FileNotFoundError:
            return True
        return False

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any) -> Any:
        found = dict(self.walk_objects(path))
        if not found:
            with contextlib.suppress(FileNotFoundError):
                info = self.info(path)
                found = {info["name"]: info} if info["type"] == "file" else {}
        return found if detail else list(found)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        client, key = self._at(path)
        bucket = self._strip_protocol(path).partition("/")[0]
        with telling(path):
            found = self._folder(client, bucket, key)
        infos = [_info(f"{bucket}/{meta['path']}", meta) for meta in found["objects"]]
        infos += [{"name": f"{bucket}/{name}", "size": 0, "type": "directory"} for name in found["common_prefixes"]]
        if not infos and key:
            return [self.info(path)] if detail else [self._strip_protocol(path)]
        return infos if detail else [info["name"] for info in infos]

    def _folder(self, client: Any, bucket: str, key: str) -> Any:
        """The objects and folders in a folder."""
        from obstore.exceptions import InvalidPathError

        try:
            return client.list_with_delimiter(key or None)
        except InvalidPathError:
            start = f"{key}/" if key else ""
            metas = list(open_exactly(self.scheme, bucket).list_after(start, None))
            below = {
                meta["path"][len(start) :].partition("/")[0] for meta in metas if "/" in meta["path"][len(start) :]
            }
            objects = [meta for meta in metas if "/" not in meta["path"][len(start) :]]
            return {"objects": objects, "common_prefixes": sorted(start + name for name in below)}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        client, key = self._at(path)
        bucket = self._strip_protocol(path).partition("/")[0]
        with telling(path):
            if key:
                try:
                    return _info(self._strip_protocol(path), client.head(key))
                except FileNotFoundError:
                    pass
            found = self._folder(open_bucket(self.scheme, bucket), bucket, key) if not is_odd(key) else EMPTY
        if key and not found["objects"] and not found["common_prefixes"]:
            raise FileNotFoundError(2, "there is no such object", path)
        return {"name": self._strip_protocol(path), "size": 0, "type": "directory"}

    def modified(self, path: str) -> datetime:
        """When an object was written. A folder has no time of its own."""
        info = self.info(path)
        if info["type"] == "directory":
            raise FileNotFoundError(2, "there is no such object", path)
        return cast(datetime, info["mtime"])

    def read(self, path: str) -> tuple[bytes, dict[str, Any]]:
        """An object whole and its info, in one request; its length and, where its ETag is an MD5, its bytes checked."""
        client, key = self._at(path)

        def get() -> tuple[bytes, dict[str, Any]]:
            got = client.get(key)
            data, info = got.bytes().to_bytes(), _info(self._strip_protocol(path), got.meta)
            if len(data) != info["size"]:
                raise WrongBytes(f"{len(data)} bytes came of {info['size']}")
            if not _is_digest(data, info["etag"]) and self._has_digests(path, info["etag"]):
                raise WrongBytes("other bytes came than its ETag says")
            return data, info

        return _again(get, path)

    def _has_digests(self, path: str, etag: str) -> bool:
        """Whether the ETags of the path's bucket are MD5 digests, judged by some of its other objects: encrypted by a
        key of the customer's, and in some stores always, they are not."""
        if not MD5.match(etag):
            return False
        bucket = f"{self.scheme}://{self._strip_protocol(path).partition('/')[0]}"
        with _lock:
            if bucket not in _digests:
                some = itertools.islice(self.walk_objects(bucket), PROBED)
                _digests[bucket] = any(
                    _is_digest(self._at(name)[0].get(self._at(name)[1]).bytes().to_bytes(), info["etag"])
                    for name, info in some
                    if name != self._strip_protocol(path) and info["size"] <= PROBED_BYTES and not name.endswith("/")
                )
            return _digests[bucket]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if start is None and end is None:
            return self.read(path)[0]
        first, stop, _step = slice(start, end).indices(int(self.info(path)["size"]))
        client, key = self._at(path)
        return _get_range(client, key, path, first, stop, None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create":
            if not self.create(path, value):
                raise FileExistsError(path)
            return
        client, key = self._at(path)
        with telling(path):
            client.put(key, value, chunk_size=BLOCK, max_concurrency=4)

    def create(self, path: str, data: bytes) -> bool:
        """Put the object where none stands; False if one does."""
        return self._put(path, data, "create")

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """An object whole and its version, for `replace_if`: its ETag, in Google's store its generation."""
        data, info = self.read(path)
        return data, str(info[self._version])

    def replace_if(self, path: str, data: bytes, version: str) -> bool:
        """Put the object in place of the one of this version; False if it is another by now, or gone."""
        return self._put(path, data, {"version" if self._version == "generation" else "e_tag": version})

    def _put(self, path: str, data: bytes, mode: Any) -> bool:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        client, key = self._at(path)
        for tries in range(1, TRIES + 1):
            with telling(path):
                try:
                    client.put(key, data, mode=mode, use_multipart=False)
                    return True
                except (AlreadyExistsError, PreconditionError):
                    # After a try whose answer was lost this may be our own.
                    return tries > 1 and self._stands(client, key, data)
                except FileNotFoundError:
                    if mode == "create":  # no bucket
                        raise
                    return False
                except BaseError as error:
                    if tries == TRIES or is_exhausted(error):
                        raise
            time.sleep(tries)
        raise AssertionError("unreachable")

    @staticmethod
    def _stands(client: Any, key: str, data: bytes) -> bool:
        try:
            return bool(client.get(key).bytes().to_bytes() == data)
        except FileNotFoundError:
            return False

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        client, key = self._at(rpath)
        chunk = max(BLOCK, -(-os.path.getsize(lpath) // MAX_CHUNKS))
        with telling(rpath):
            client.put(key, Path(lpath), chunk_size=chunk, max_concurrency=4)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        with self.open(rpath) as source, open(lpath, "wb") as target:
            while data := source.read(BLOCK):
                target.write(data)

    def _rm(self, path: str) -> None:
        client, key = self._at(path)
        with telling(path):
            client.delete(key)

    rm_file = _rm

    def rm(self, path: str, recursive: bool = False, **_: Any) -> None:
        """Remove an object, or all below a folder; there is no object for the folder itself."""
        if not recursive:
            self._rm(path)
            return
        for name in self.find(path):
            with contextlib.suppress(FileNotFoundError):  # another was quicker
                self._rm(name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders come with what lies in them."""

    def rmdir(self, path: str) -> None:
        """And go with it."""

    def open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> io.BufferedReader:
        """The object for reading at random, as it is now: once it is replaced, reading fails."""
        if mode != "rb":
            raise NotImplementedError(f"objects are written whole, not opened with mode {mode!r}")
        client, key = self._at(path)
        with telling(path):
            meta = client.head(key)
        return io.BufferedReader(_Ranges(client, key, path, _info("", meta)), block_size or 2**20)


class _Ranges(io.RawIOBase):
    """An object read piece by piece, each of the length asked for."""

    def __init__(self, client: Any, key: str, path: str, info: dict[str, Any]):
        self._client, self._key, self._path, self._info = client, key, path, info
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, (0, self._place, self._info["size"])[whence] + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._info["size"])
        if end <= self._place:
            return 0
        data = _get_range(self._client, self._key, self._path, self._place, end, self._info["etag"])
        buffer[: len(data)] = data
        self._place = end
        return len(data)


class WrongBytes(OSError):
    """What came is not what the store says of it."""


Got = TypeVar("Got")


def _again(get: Callable[[], Got], path: str) -> Got:
    """What `get` gives, asked again where an answer broke off or was wrong: the client repeats no body."""
    from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

    with telling(path):
        for tries in range(1, TRIES + 1):
            try:
                return get()
            except (PermissionDeniedError, UnauthenticatedError, PreconditionError):
                raise
            except (BaseError, WrongBytes) as error:
                if tries == TRIES or is_exhausted(error):
                    raise
            time.sleep(0.2 * tries)
    raise AssertionError("unreachable")


def _get_range(client: Any, key: str, path: str, start: int, end: int, etag: str | None) -> bytes:
    if end <= start:
        return b""
    options = {"range": (start, end)} | ({"if_match": f'"{etag}"'} if etag else {})

    def get() -> bytes:
        data: bytes = client.get(key, options=options).bytes().to_bytes()
        if len(data) != end - start:
            raise WrongBytes(f"{len(data)} bytes came of {end - start}")
        return data

    return _again(get, path)


def _info(name: str, meta: Any) -> dict[str, Any]:
    etag = (meta["e_tag"] or "").strip('"')
    told = {"etag": etag, "generation": meta["version"], "mtime": meta["last_modified"]}
    return {"name": name, "size": meta["size"], "type": "file"} | told


def _is_digest(data: bytes, etag: str) -> bool:
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag


_lock = threading.Lock()
_digests: dict[str, bool] = {}  # by bucket: whether ETags are MD5

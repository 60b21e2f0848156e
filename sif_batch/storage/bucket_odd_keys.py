"""Objects whose keys the quick client cannot name: with `//`, `.` or `..` as a folder, or control characters.

Clients of each vendor's own interface with what is used of obstore's: `list_after`, `head`, `get`.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import fsspec

from sif_batch.storage.bucket_azure import Azure, as_error
from sif_batch.storage.bucket_clients import azure_options

# What object_store, which is under obstore, takes for no path.
ODD = re.compile(r"^/|//|(^|/)\.{1,2}(/|$)|[\x00-\x1f\x7f]")
PATIENCE_S = 60
Bytes = bytes


def is_odd(key: str) -> bool:
    """Whether the quick client refuses this key."""
    return ODD.search(key) is not None


@dataclass(frozen=True)
class Got:
    """An object, or a range of one, as obstore gives it."""

    meta: dict[str, Any]
    data: Bytes

    def bytes(self) -> "Got":
        return self

    def to_bytes(self) -> Bytes:
        return self.data


class S3:
    """A bucket of S3, by botocore."""

    def __init__(self, bucket: str):
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.session import Session

        given = fsspec.config.conf.get("s3", {})
        kwargs = given.get("client_kwargs", {})
        anonymous = given.get("anon") or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true"
        session = Session(profile=given.get("profile"))
        if given.get("key"):
            session.set_credentials(given["key"], given["secret"], given.get("token"))
        retries = {"max_attempts": 8, "mode": "standard"}
        options = {"signature_version": UNSIGNED} if anonymous else {}
        self._client = session.create_client(
            "s3",
            region_name=kwargs.get("region_name") or session.get_config_variable("region") or "us-east-1",
            endpoint_url=given.get("endpoint_url") or kwargs.get("endpoint_url"),
            config=Config(retries=retries, read_timeout=PATIENCE_S, **options),
        )
        self._bucket = bucket

    def list_after(self, prefix: str, last: str | None) -> Iterator[dict[str, Any]]:
        """All objects whose keys begin so, in order of keys, after one."""
        after = {"StartAfter": last} if last else {}
        pages = self._client.get_paginator("list_objects_v2")
        with _telling_aws(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, **after):
                for one in page.get("Contents", ()):
                    yield _meta(one["Key"], one["Size"], one["ETag"], None, one["LastModified"])

    def head(self, key: str) -> dict[str, Any]:
        with _telling_aws(key):
            return self._meta_of(key, self._client.head_object(Bucket=self._bucket, Key=key))

    def get(self, key: str, options: Any = None) -> Got:
        given = {}
        if options and "range" in options:
            given["Range"] = f"bytes={options['range'][0]}-{options['range'][1] - 1}"
        if options and "if_match" in options:
            given["IfMatch"] = options["if_match"]
        with _telling_aws(key):
            said = self._client.get_object(Bucket=self._bucket, Key=key, **given)
            return Got(self._meta_of(key, said), said["Body"].read())

    @staticmethod
    def _meta_of(key: str, said: Any) -> dict[str, Any]:
        return _meta(key, said["ContentLength"], said["ETag"], None, said["LastModified"])


@contextmanager
def _telling_aws(key: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise as_error(int(error.response["ResponseMetadata"]["HTTPStatusCode"]), key) from None
    except BotoCoreError as error:
        raise OSError(5, type(error).__name__, key) from None


class Gcs:
    """A bucket of Google Cloud Storage, by its JSON interface."""

    def __init__(self, bucket: str):
        import google.auth
        import requests
        from google.auth.transport.requests import AuthorizedSession

        given = fsspec.config.conf.get("gs", {})
        endpoint = given.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
        if endpoint or given.get("token") == "anon":
            self._session: Any = requests.Session()
        else:
            scope = "https://www.googleapis.com/auth/devstorage.read_only"
            self._session = AuthorizedSession(google.auth.default(scopes=[scope])[0])
        base = endpoint or "https://storage.googleapis.com"
        base = base if "://" in base else f"http://{base}"
        self._objects = f"{base.rstrip('/')}/storage/v1/b/{bucket}/o"

    def list_after(self, prefix: str, last: str | None) -> Iterator[dict[str, Any]]:
        """All objects whose keys begin so, in order of keys, after one."""
        asked = {"prefix": prefix} | ({"startOffset": last} if last else {})
        while True:
            page = self._ask(self._objects, prefix, params=asked).json()
            for one in page.get("items", ()):
                if one["name"] != last:
                    yield _of_gcs(one)
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def head(self, key: str) -> dict[str, Any]:
        return _of_gcs(self._ask(self._at(key), key).json())

    def get(self, key: str, options: Any = None) -> Got:
        meta, headers = self.head(key), {}
        if options and "range" in options:
            headers["Range"] = f"bytes={options['range'][0]}-{options['range'][1] - 1}"
        asked = {"alt": "media"} | ({"generation": meta["version"]} if meta["version"] else {})
        return Got(meta, self._ask(self._at(key), key, params=asked, headers=headers).content)

    def _at(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='').replace('.', '%2E')}"

    def _ask(self, url: str, key: str, **given: Any) -> Any:
        import requests
        from google.auth.exceptions import GoogleAuthError

        try:
            answer = self._session.get(url, timeout=PATIENCE_S, **given)
        except (requests.RequestException, GoogleAuthError) as error:
            raise OSError(5, type(error).__name__, key) from None
        if not answer.ok:
            raise as_error(answer.status_code, key)
        return answer


class Blobs(Azure):
    """A container of Azure."""

    def __init__(self, container: str):
        super().__init__(container, azure_options(fsspec.config.conf.get("az", {}))[0])

    def get(self, key: str, options: Any = None) -> Got:
        start, end = (options or {}).get("range", (None, None))
        return Got(*self.read(key, start, end, (options or {}).get("if_match", "")))


def _meta(key: str, size: int, etag: str, version: str | None, modified: datetime) -> dict[str, Any]:
    return {"path": key, "size": size, "e_tag": etag, "version": version, "last_modified": modified}


def _of_gcs(one: dict[str, Any]) -> dict[str, Any]:
    modified = datetime.fromisoformat(one["updated"].replace("Z", "+00:00"))
    return _meta(one["name"], int(one["size"]), one.get("etag", ""), one.get("generation"), modified)


CLIENTS: dict[str, Any] = {"s3": S3, "s3a": S3, "gs": Gcs, "gcs": Gcs, "az": Blobs, "abfs": Blobs, "abfss": Blobs}


@functools.lru_cache(maxsize=64)
def open_exactly(scheme: str, bucket: str) -> Any:
    """The client of a bucket that takes any key. Raises OSError where its credentials do not do for that."""
    return CLIENTS[scheme](bucket)

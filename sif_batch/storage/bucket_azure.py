"""Blobs of Azure whose names the quick client cannot say, by Azure's own interface and the account's key."""

import base64
import hashlib
import hmac
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree

VERSION = "2021-12-02"
PATIENCE_S = 60


class Azure:
    """A container of blobs. config: account_name, account_key and endpoint, where it is not Azure's own.

    Raises OSError without an account's key: other credentials sign no list.
    """

    def __init__(self, container: str, config: dict[str, Any]):
        env = os.environ
        self._account = config.get("account_name") or env.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        key = config.get("account_key") or env.get("AZURE_STORAGE_ACCOUNT_KEY") or env.get("AZURE_STORAGE_ACCESS_KEY")
        if not (self._account and key):
            raise PermissionError(
                13, "names with // or the like in them are read with an account's key alone", container
            )
        self._key = base64.b64decode(key)
        endpoint = config.get("endpoint") or f"https://{self._account}.blob.core.windows.net"
        self._base = f"{endpoint.rstrip('/')}/{container}"

    def list_after(self, prefix: str, last: str | None) -> Iterator[dict[str, Any]]:
        """All blobs whose names begin so, in order of names, after one."""
        asked = {"restype": "container", "comp": "list", "prefix": prefix}
        while True:
            page = ElementTree.fromstring(self._ask("GET", "", asked)[1])
            for blob in page.iter("Blob"):
                meta = _of_list(blob)
                if last is None or meta["path"].encode() > last.encode():
                    yield meta
            if not (marker := page.findtext("NextMarker")):
                return
            asked["marker"] = marker

    def head(self, key: str) -> dict[str, Any]:
        return _of_headers(key, self._ask("HEAD", key, {})[0])

    def read(self, key: str, start: int | None, end: int | None, etag: str) -> tuple[dict[str, Any], bytes]:
        """What is known of a blob, and its bytes or a range of them."""
        ranged = {"x-ms-range": f"bytes={start}-{(end or 0) - 1}"} if start is not None else {}
        headers, data = self._ask("GET", key, {}, ranged, etag)
        return _of_headers(key, headers), data

    def _ask(
        self,
        verb: str,
        key: str,
        asked: dict[str, str],
        more: dict[str, str] | None = None,
        etag: str = "",
    ) -> tuple[Any, bytes]:
        url = self._base + (f"/{quote(key, safe='/')}" if key else "")
        said = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION} | (more or {})
        headers = [f"{name}:{said[name]}" for name in sorted(said)]
        resource = f"/{self._account}{urlsplit(url).path}" + "".join(f"\n{n}:{asked[n]}" for n in sorted(asked))
        signed = "\n".join([verb, *[""] * 7, etag, *[""] * 3, *headers, resource])
        mac = base64.b64encode(hmac.new(self._key, signed.encode(), hashlib.sha256).digest()).decode()
        said |= {"Authorization": f"SharedKey {self._account}:{mac}"} | ({"If-Match": etag} if etag else {})
        request = urllib.request.Request(f"{url}?{urlencode(asked)}" if asked else url, headers=said, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            raise as_error(error.code, key) from None
        except (urllib.error.URLError, http.client.HTTPException) as error:
            raise OSError(5, f"the store does not answer ({type(error).__name__})", key) from None


def as_error(status: int, key: str) -> OSError:
    """What the quick client's errors become, for a status of HTTP."""
    if status == 404:
        return FileNotFoundError(2, "there is no such object", key)
    if status in (401, 403):
        return PermissionError(13, f"the store refuses ({status})", key)
    return OSError(5, "it changed while it was read" if status == 412 else f"the store says {status}", key)


def _of_list(blob: ElementTree.Element) -> dict[str, Any]:
    name = blob.find("Name")
    text = (name.text or "") if name is not None else ""
    path = unquote(text) if name is not None and name.get("Encoded") == "true" else text
    told = {one.tag: one.text or "" for one in blob.iterfind("Properties/*")}
    if told.get("ResourceType") == "directory":
        path += "/"
    modified = parsedate_to_datetime(told["Last-Modified"])
    return {
        "path": path,
        "size": int(told["Content-Length"]),
        "e_tag": told.get("Etag", ""),
        "version": None,
        "last_modified": modified,
    }


def _of_headers(key: str, told: Any) -> dict[str, Any]:
    total = (told.get("Content-Range") or "").rpartition("/")[2] or told["Content-Length"]
    modified = parsedate_to_datetime(told["Last-Modified"])
    return {"path": key, "size": int(total), "e_tag": told["ETag"], "version": None, "last_modified": modified}

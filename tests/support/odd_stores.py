"""A server that speaks as much of S3, and of Google's store, as a source needs, with any keys; in this process."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
TIME = "2026-01-01T00:00:00.000Z"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(place.query, keep_blank_values=True).items()}
        if place.path.startswith("/storage/v1/b/bucket/o"):
            self._google(unquote(place.path.removeprefix("/storage/v1/b/bucket/o").removeprefix("/")), asked)
            return
        key = unquote(place.path).removeprefix("/bucket").removeprefix("/")
        self._object(key) if key else self._list(asked)

    def _page(self, asked: dict[str, str], after: str) -> tuple[list[str], list[str], str]:
        """Keys, folders, and where the next page begins."""
        start, wanted = asked.get("prefix", ""), sorted(self.objects, key=str.encode)
        below = [key for key in wanted if key.startswith(start) and key > asked.get(after, "")]
        folders = set()
        if asked.get("delimiter"):
            folders = {start + key[len(start) :].partition("/")[0] + "/" for key in below if "/" in key[len(start) :]}
            below = [key for key in below if "/" not in key[len(start) :]]
        return below[:PAGE], sorted(folders), below[PAGE - 1] if len(below) > PAGE else ""

    def _list(self, asked: dict[str, str]) -> None:
        asked["start-after"] = asked.get("continuation-token") or asked.get("start-after", "")
        keys, folders, more = self._page(asked, "start-after")
        spell = quote if asked.get("encoding-type") == "url" else escape
        rows = "".join(
            f"<Contents><Key>{spell(key)}</Key><Size>{len(self.objects[key])}</Size><LastModified>{TIME}</LastModified>"
            f"<ETag>&quot;{self._etag(key)}&quot;</ETag></Contents>"
            for key in keys
        )
        rows += "".join(f"<CommonPrefixes><Prefix>{spell(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{spell(more)}</NextContinuationToken>" if more else ""
        said = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated><EncodingType>{asked.get('encoding-type', '')}"
        self._send(200, f"<ListBucketResult>{said}</EncodingType>{token}{rows}</ListBucketResult>".encode())

    def _google(self, key: str, asked: dict[str, str]) -> None:
        if not key:
            keys, _, more = self._page(asked, "pageToken" if "pageToken" in asked else "startOffset")
            self._send(200, json.dumps({"items": [self._said(k) for k in keys], "nextPageToken": more}).encode())
        elif key not in self.objects:
            self._send(404, b"")
        elif asked.get("alt") == "media":
            self._object(key)
        else:
            self._send(200, json.dumps(self._said(key)).encode())

    def _said(self, key: str) -> dict[str, Any]:
        size = str(len(self.objects[key]))
        return {"name": key, "size": size, "etag": self._etag(key), "generation": "1", "updated": TIME}

    def _etag(self, key: str) -> str:
        return hashlib.md5(self.objects[key]).hexdigest()

    def _object(self, key: str) -> None:
        if key not in self.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data, status, more = self.objects[key], 200, {"ETag": f'"{self._etag(key)}"'}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, more["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[int(first) : int(last) + 1]
        self._send(status, data, more | {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "x-goog-generation": "1"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def serving(objects: dict[str, bytes]) -> Iterator[str]:
    """Serve these objects as those of `bucket`. The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": objects}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

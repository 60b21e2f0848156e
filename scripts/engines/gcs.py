"""Google Cloud Storage's XML API in front of a server that speaks S3: the same requests, other words for conditions.

fake-gcs-server has the JSON API, and of the XML API no plain upload, which is what clients by obstore send.
"""

import contextlib
import http.client
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONDITION, GENERATION = "x-goog-if-generation-match", "x-goog-generation"
OURS = ("connection", "transfer-encoding", "content-length", "date", "server")


class Translated(BaseHTTPRequestHandler):
    """A request passed on to the server. Its ETag stands for the generation: both change with what an object holds."""

    protocol_version = "HTTP/1.1"
    server: "Front"

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "authorization")}
        condition = headers.pop(CONDITION, None)
        if condition is not None:
            headers |= {"If-None-Match": "*"} if condition == "0" else {"If-Match": f'"{condition}"'}
        there = http.client.HTTPConnection(self.server.behind)
        # The server compares and puts in two steps; Google in one.
        with self.server.one if condition else contextlib.nullcontext(), contextlib.closing(there):
            target = urllib.parse.quote(urllib.parse.unquote(path)) + (f"?{query}" if query else "")
            there.request(self.command, target, body, headers)
            got = there.getresponse()
            data = got.read()
            self.send_response(got.status)
            for name, value in got.getheaders():
                if name.lower() not in OURS:
                    self.send_header(name, value)
            if etag := got.getheader("ETag"):
                self.send_header(GENERATION, etag.strip('"'))
            length = got.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


class Front(ThreadingHTTPServer):
    """behind: host:port of the S3 server, which asks for no credentials."""

    daemon_threads = True

    def __init__(self, behind: str):
        super().__init__(("127.0.0.1", 0), Translated)
        self.behind, self.one = behind, threading.Lock()


@contextlib.contextmanager
def gcs_front(endpoint: str) -> Iterator[str]:
    """The URL at which Google's API is spoken."""
    front = Front(endpoint.removeprefix("http://"))
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{front.server_port}"
    finally:
        front.shutdown()
        front.server_close()
        thread.join()

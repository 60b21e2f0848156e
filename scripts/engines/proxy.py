"""A proxy in front of a store that goes wrong on demand: what networks and stores do, done on purpose."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

STALL_S = 3600.0
HEAD_END = b"\r\n\r\n"


@dataclass
class Fault:
    """What happens to requests whose line matches, `times` of them (None: all), after the first `after` ones.

    kind: a status such as "503", or reset, cut (the body, halfway), stall (halfway), short (a shorter body without
    Content-Length), flip (one byte of the body), away (no connection is answered).
    """

    kind: str
    matching: str = "^GET "
    times: int | None = 1
    after: int = 0
    met: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def takes(self, line: str) -> bool:
        if not re.search(self.matching, line):
            return False
        with self.lock:
            self.met += 1
            return self.met > self.after and (self.times is None or self.met <= self.after + self.times)

    @property
    def happened(self) -> int:
        return max(0, min(self.met - self.after, self.times if self.times is not None else self.met))


class Proxy:
    """Listens on 127.0.0.1; passes each request on, unless a fault takes it."""

    def __init__(self, target: str):
        self.host, _, port = target.rpartition("//")[2].rpartition(":")
        self.port = int(port)
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._own_port}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._own_port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._pass_on(reader, writer):
                pass
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(HEAD_END)
        line = head.split(b"\r\n", 1)[0].decode()
        body = await _body(reader, head)
        self.requests.append(line)
        fault = next((f for f in list(self.faults) if f.takes(line)), None)
        if fault is not None and fault.kind in ("reset", "away"):
            writer.transport.abort()
            return False
        if fault is not None and fault.kind.isdigit():
            writer.write(f"HTTP/1.1 {fault.kind} Slow Down\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return True
        server, to_server = await asyncio.open_connection(self.host, self.port)
        try:
            to_server.write(head.replace(HEAD_END, b"\r\nConnection: close\r\n\r\n", 1) + body)
            await to_server.drain()
            answer_head = await server.readuntil(HEAD_END)
            answer = await server.read() if not line.startswith("HEAD ") else b""
        finally:
            to_server.close()
        if b"transfer-encoding: chunked" in answer_head.lower():
            answer_head, answer = _unchunked(answer_head, answer)
        return await _answer(writer, answer_head, answer, fault.kind if fault else "", line.startswith("HEAD "))


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"expect: 100-continue" in head.lower():
        raise ConnectionError("not passed on")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return await reader.readexactly(int(length[1])) if length else b""


def _unchunked(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    data, rest = b"", body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if not length:
            break
        data, rest = data + rest[:length], rest[length + 2 :]
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"transfer-encoding")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(data)]) + HEAD_END, data


async def _answer(writer: asyncio.StreamWriter, head: bytes, body: bytes, kind: str, is_head: bool) -> bool:
    half = len(body) // 2
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
    if kind == "short":
        lines = [line for line in lines if not line.lower().startswith(b"content-length")] + [b"Connection: close"]
        writer.write(b"\r\n".join(lines) + HEAD_END + body[:half])
        await writer.drain()
        return False
    if kind == "flip" and body:
        body = body[:half] + bytes([body[half] ^ 0x10]) + body[half + 1 :]
    if not is_head:  # an answer that ends with its connection would never end here
        lines = [line for line in lines if not line.lower().startswith(b"content-length")]
        lines.append(b"Content-Length: %d" % len(body))
    writer.write(b"\r\n".join(lines) + HEAD_END)
    if kind in ("cut", "stall"):
        writer.write(body[:half])
        await writer.drain()
        if kind == "stall":
            await asyncio.sleep(STALL_S)
        writer.transport.abort()
        return False
    writer.write(body)
    await writer.drain()
    return True


@contextlib.contextmanager
def faulty(target: str) -> Iterator[Proxy]:
    """A proxy in front of `target` (http://host:port), gone afterwards."""
    proxy = Proxy(target)
    proxy._thread.start()
    proxy._ready.wait()
    try:
        yield proxy
    finally:
        stop: Callable[[], None] = proxy._loop.stop
        proxy._loop.call_soon_threadsafe(proxy._server.close)
        proxy._loop.call_soon_threadsafe(stop)
        proxy._thread.join(5)

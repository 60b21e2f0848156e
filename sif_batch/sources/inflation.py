"""Compressed files as what they hold, told by their first bytes and read within bounds of memory and time."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from sif_batch.failures import ImageError

CHUNK = 2**16  # compressed bytes that are read at once
STEP = 2**9  # inflated bytes, where damage is near
BUFFER = 2**20  # going back so far costs nothing; further, the file is begun anew
GRACE, RATIO = 2**30, 200  # what holds more than so many bytes, and so many for each of its own, only wastes time
REWINDS = 16  # of a damaged file: each takes as long as reading it
XZ_MEMORY = 256 * 2**20  # what its dictionary may take: xz -9 has one of 64 MB


class StreamDamage(ImageError):
    """The compressed bytes end too early, make no sense, or inflate beyond all measure."""


class Decompressor(Protocol):
    """What bz2 and lzma have: one stream, of which a file may hold several."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Gzip:
    """zlib's decompressor of a gzip member, its checksum too, with the names of the others."""

    def __init__(self) -> None:
        self._one = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._one.eof

    @property
    def unused_data(self) -> bytes:
        return self._one.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._one.unconsumed_tail and not self._one.eof

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._one.decompress(self._one.unconsumed_tail + data, max_length)


CODECS: dict[str, tuple[re.Pattern[bytes], Callable[[], Decompressor] | None]] = {
    "gzip": (re.compile(rb"\x1f\x8b"), _Gzip),
    "bzip2": (re.compile(rb"BZh[1-9]"), bz2.BZ2Decompressor),
    "xz": (re.compile(rb"\xfd7zXZ\0"), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)),
    "zstd": (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), None),  # pyarrow's
}


def inflated(file: BinaryIO, rewinds: int = REWINDS) -> Any:
    """The file as it is, or what it holds where its first bytes say that it is compressed. Reading may then raise
    StreamDamage: `truncated`, `corrupt`, or `too_large` if it inflates to more than 200 times its own bytes."""
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    codec = next((name for name, (magic, _) in CODECS.items() if magic.match(start)), None)
    return file if codec is None else io.BufferedReader(_Inflated(file, codec, rewinds), BUFFER)


class _Inflated(io.RawIOBase):
    """Streams one after the other, as `cat` puts them; zeros between and behind them are passed over."""

    def __init__(self, file: BinaryIO, codec: str, rewinds: int):
        self._file, self._codec, self._rewinds = file, codec, rewinds
        self._damage: StreamDamage | None = None
        self._careful = False
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._at = self._taken = 0
        make = CODECS[self._codec][1]
        self._one = make() if make else None
        # Reads a buffer of its own, which it may close.
        self._stream = None if make else pa.CompressedInputStream(pa.PythonFile(_Reader(self._read), "r"), "zstd")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence in (0, 1), "the end of a compressed file is not known"
        offset += self._at if whence else 0
        if offset < self._at:
            if not self._rewinds:
                raise StreamDamage("corrupt", "too much of it is damaged")
            self._rewinds -= 1
            self._begin()
        while self._at < offset and self._next(min(BUFFER, offset - self._at)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        """Some bytes, `size` at most; none at the end."""
        if self._damage:
            raise self._damage
        try:
            data = self._from_arrow(size) if self._stream else self._from_streams(size)
            self._at += len(data)
            if self._at > GRACE + RATIO * self._taken:
                raise StreamDamage("too_large", f"{self._taken} bytes of {self._codec} inflate to more than {self._at}")
        except StreamDamage as error:
            self._damage = error
            raise
        except (zlib.error, lzma.LZMAError) as error:
            self._damage = StreamDamage("corrupt", f"{self._codec}: {error}")
            raise self._damage from error
        return data

    def _from_arrow(self, size: int) -> bytes:
        """What fails takes all of its read with it: then the last read is done again, in small steps."""
        assert self._stream is not None
        try:
            return bytes(self._stream.read(STEP if self._careful else size))
        except OSError as error:
            if not self._careful:
                self._careful, at = True, self._at
                self._begin()
                while self._at < at:
                    self._at += len(self._stream.read(min(BUFFER, at - self._at)))
                return self._from_arrow(size)
            kind = "truncated" if "runcated" in str(error) else "corrupt"
            raise StreamDamage(kind, f"{self._codec}: {error}"[:200]) from error

    def _from_streams(self, size: int) -> bytes:
        assert self._one is not None
        while True:
            if self._one.eof:
                if not (rest := self._after_stream(self._one.unused_data)):
                    return b""
                if not CODECS[self._codec][0].match(rest):
                    raise StreamDamage("corrupt", f"other bytes follow the end of its {self._codec} data")
                self._one = CODECS[self._codec][1]()  # type: ignore[misc]
            else:
                rest = self._read() if self._one.needs_input else b""
            try:
                data = self._one.decompress(rest, size)
            except OSError as error:  # bz2's word for damage
                raise StreamDamage("corrupt", f"{self._codec}: {error}") from error
            if data:
                return data
            if not rest and not self._one.eof and self._one.needs_input:
                raise StreamDamage("truncated", f"its {self._codec} data end before their end mark")

    def _after_stream(self, rest: bytes) -> bytes:
        while not (rest := rest.lstrip(b"\0")):
            if not (rest := self._read()):
                return b""
        return rest if len(rest) >= 8 else rest + self._read()

    def _read(self) -> bytes:
        data = self._file.read(CHUNK)
        self._taken += len(data)
        return data


class _Reader(io.RawIOBase):
    """A file by its function that reads some bytes."""

    def __init__(self, read: Callable[[], bytes]):
        self._read = read

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._read()

"""HEIC files made of known pixels, since nothing here encodes HEVC: each block of 32 x 32 pixels is a slice of its own
whose samples stand in it as they are (pulse code modulation), so that a decoder can only give these very values.

By ITU-T H.265 (7.3, 9.3) and ISO/IEC 23008-12.
"""

import struct
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

BLOCK = 32
VPS, SPS, PPS, IDR = 32, 33, 34, 19
GREY, SUBSAMPLED = 0, 1  # chroma_format_idc: luma alone, and 4:2:0


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, count: int = 1) -> "_Bits":
        self.text += format(value, f"0{count}b") if count else ""
        return self

    def golomb(self, *values: int) -> "_Bits":
        """ue(v) of each."""
        for value in values:
            self.put(value + 1, 2 * (value + 1).bit_length() - 1)
        return self

    def aligned(self, stop: bool = True) -> bytes:
        self.text += "1" if stop else ""
        self.text += "0" * (-len(self.text) % 8)
        return int(self.text, 2).to_bytes(len(self.text) // 8, "big")


class _Arithmetic:
    """The encoder of 9.3.4, for the two bins that a block needs."""

    def __init__(self) -> None:
        self.low, self.range, self.waiting, self.first, self.bits = 0, 510, 0, True, _Bits()

    def part_mode_whole(self) -> None:
        self.range -= 240  # the likelier value in the first state of its context

    def end(self) -> bytes:
        """A terminating 1, and the flush: its last bit is the stop bit of the slice."""
        self.low += self.range - 2
        self.range = 2
        while self.range < 256:
            if self.low < 256:
                self._put(0)
            elif self.low >= 512:
                self.low -= 512
                self._put(1)
            else:
                self.low -= 256
                self.waiting += 1
            self.range, self.low = self.range << 1, self.low << 1
        self._put((self.low >> 9) & 1)
        self.bits.put(((self.low >> 7) & 3) | 1, 2)
        return self.bits.aligned(stop=False)

    def _put(self, bit: int) -> None:
        if self.first:
            self.first = False
        else:
            self.bits.put(bit)
        self.bits.text += str(1 - bit) * self.waiting
        self.waiting = 0


def _unit(kind: int, body: bytes) -> bytes:
    escaped, zeros = bytearray(), 0
    for byte in body:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes([kind << 1, 1]) + bytes(escaped)


PROFILE = bytes([3]) + (0x10000000).to_bytes(4, "big") + b"\x90" + bytes(5) + bytes([93])  # Main Still Picture


def _parameters(width: int, height: int, chroma: int) -> dict[int, bytes]:
    profile = int.from_bytes(PROFILE, "big")
    video = _Bits().put(0, 4).put(3, 2).put(0, 6).put(0, 3).put(1).put(0xFFFF, 16).put(profile, 96)
    video.put(1).golomb(0, 0, 0).put(0, 6).golomb(0).put(0, 2)
    sequence = _Bits().put(0, 4).put(0, 3).put(1).put(profile, 96).golomb(0, chroma, width, height)
    sequence.put(0).golomb(0, 0, 0).put(1).golomb(0, 0, 0)  # 8 bits, no window
    sequence.golomb(2, 0, 0, 3, 0, 0).put(0, 3)  # blocks of 32, no scaling lists, no sample-adaptive offset
    sequence.put(1).put(7, 4).put(7, 4).golomb(2, 0).put(1)  # pulse code modulation of 32 x 32, 8 bits
    sequence.golomb(0).put(0, 5)
    picture = _Bits().golomb(0, 0).put(0, 7).golomb(0, 0, 0).put(0, 3).golomb(0, 0).put(0, 7)
    picture.put(1).put(0).put(1).put(0, 2).golomb(0).put(0, 2)  # no deblocking
    return {VPS: video.aligned(), SPS: sequence.aligned(), PPS: picture.aligned()}


def _picture(planes: Sequence[np.ndarray]) -> bytes:
    """The slices of (h, w) uint8 planes: luma, or luma and two of half the size."""
    height, width = planes[0].shape
    across, down = width // BLOCK, height // BLOCK
    coded = b""
    for block in range(across * down):
        header = _Bits().put(int(block == 0)).put(0).golomb(0)
        if block:
            header.put(block, (across * down - 1).bit_length())
        start, finish = _Arithmetic(), _Arithmetic()
        start.part_mode_whole()
        body = header.golomb(2, 0).aligned() + start.end()
        for plane in planes:
            side = BLOCK * plane.shape[1] // width
            top, left = block // across * side, block % across * side
            body += plane[top : top + side, left : left + side].tobytes()
        unit = _unit(IDR, body + finish.end())
        coded += struct.pack(">I", len(unit)) + unit
    return coded


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def heic(
    planes: Sequence[np.ndarray],
    turns: int = 0,
    mirror: int | None = None,
    exif: bytes = b"",
    profile: bytes = b"",
    tiles: tuple[int, int] = (1, 1),
    others: int = 0,
) -> bytes:
    """A HEIC file of one picture, its sides multiples of 32.

    planes: (h, w) uint8 of full range, luma alone or with two of chroma of half the size; turns: quarter turns
    anticlockwise; mirror: 0 top and bottom, 1 left and right, after the turn; tiles: rows and columns of one grid image
    that repeats the picture; others: so many inverted images stand before it, not primary.
    """
    height, width = planes[0].shape
    chroma = GREY if len(planes) == 1 else SUBSAMPLED
    rows, columns = tiles
    lists = b"".join(
        struct.pack(">BHH", 0x80 | kind, 1, len(unit)) + unit
        for kind, unit in ((kind, _unit(kind, body)) for kind, body in _parameters(width, height, chroma).items())
    )
    config = b"\1" + PROFILE + b"\xf0\0\xfc" + bytes([0xFC | chroma]) + b"\xf8\xf8\0\0\x0f\3" + lists
    properties = [
        _box(b"hvcC", config),
        _full(b"ispe", 0, 0, struct.pack(">II", width, height)),
        _full(b"ispe", 0, 0, struct.pack(">II", width * columns, height * rows)),
        _box(b"colr", b"prof" + profile) if profile else _box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80)),
        _box(b"irot", bytes([turns])),
        _box(b"imir", bytes([mirror or 0])),
    ]
    turned = [4, 0x85] + ([] if mirror is None else [0x86])
    coded, inverted = _picture(planes), _picture([255 - plane for plane in planes]) if others else b""
    items = dict.fromkeys(range(1, others + 1), (b"hvc1", inverted))
    facts = {number: [0x81, 2, 4] for number in items}
    primary = others + 1
    tile_numbers = range(primary + 2, primary + 2 + rows * columns) if rows * columns > 1 else range(0)
    if tile_numbers:
        shape = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width * columns, height * rows)
        items[primary], facts[primary] = (b"grid", shape), [3, *turned]
    else:
        items[primary], facts[primary] = (b"hvc1", coded), [0x81, 2, *turned]
    items |= dict.fromkeys(tile_numbers, (b"hvc1", coded))
    facts |= {number: [0x81, 2, 4] for number in tile_numbers}
    if exif:
        items[primary + 1] = (b"Exif", struct.pack(">I", 0) + exif)
    stored = list(dict.fromkeys(data for _, data in items.values()))  # the tiles of a grid share one place
    entries = b"".join(
        _full(b"infe", 2, int(number in tile_numbers), struct.pack(">HH", number, 0), kind, b"\0")
        for number, (kind, _) in items.items()
    )
    references = b""
    if tile_numbers:
        references += _box(b"dimg", struct.pack(f">HH{len(tile_numbers)}H", primary, len(tile_numbers), *tile_numbers))
    if exif:
        references += _box(b"cdsc", struct.pack(">HHH", primary + 1, 1, primary))
    linked = b"".join(struct.pack(">HB", number, len(facts[number])) + bytes(facts[number]) for number in sorted(facts))

    def meta(start: int) -> bytes:
        begins = dict(zip(stored, accumulate((len(data) for data in stored), initial=start), strict=False))
        places = b"".join(
            struct.pack(">HHHII", number, 0, 1, begins[data], len(data)) for number, (_, data) in items.items()
        )
        return _full(
            b"meta",
            0,
            0,
            _full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            _full(b"pitm", 0, 0, struct.pack(">H", primary)),
            _full(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(items)), places),
            _full(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            _full(b"iref", 0, 0, references) if references else b"",
            _box(b"iprp", _box(b"ipco", *properties), _full(b"ipma", 0, 0, struct.pack(">I", len(facts)), linked)),
        )

    head = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + _box(b"mdat", *stored)

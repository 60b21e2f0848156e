import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from synthetic import memory_copy

from sif_batch.errors import SifBatchError
from sif_batch.failures import ImageError
from sif_batch.images.contact_sheet import BAD, FRAME, GOOD, Strip, Tile, contact_sheet
from sif_batch.images.thumbnails import thumbnail
from sif_batch.jobs.asking.contact_sheet import check_name, write_picture
from sif_batch.sources.originals import find_thumbnail, read_uri


def jpeg(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30), orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, "JPEG", exif=exif, quality=95)
    return sink.getvalue()


def test_every_uri_of_a_release_can_be_read(tmp_path: Path) -> None:
    data = {name: jpeg(20 + i, 10) for i, name in enumerate(("a.jpg", "cat/b c.jpg", "x.jpg"))}
    (tmp_path / "a.jpg").write_bytes(data["a.jpg"])
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, content in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    rows = pa.array([{"bytes": content, "path": name} for name, content in data.items()] * 3)
    pq.write_table(pa.table({"image": rows, "other": [b""] * 9}), tmp_path / "t.parquet", row_group_size=4)
    with pytest.raises(ImageError, match="2 columns hold bytes"):
        read_uri(f"{tmp_path}/t.parquet#row=1")
    forget = memory_copy(tmp_path, "memory://pictures")
    try:
        for base in (str(tmp_path), "memory://pictures"):
            assert read_uri(f"{base}/a.jpg") == data["a.jpg"]
            for name, content in data.items():
                assert read_uri(f"tar://{name}::{base}/t.tar") == content
            for row in range(9):
                assert read_uri(f"{base}/t.parquet#row={row}", "image") == list(data.values())[row % 3]
            with pytest.raises(ImageError, match="no such row"):
                read_uri(f"{base}/t.parquet#row=9", "image")
            assert find_thumbnail(f"{base}/gone.jpg", 10) is None
    finally:
        forget()
    (tmp_path / "note.jpg").write_text("no image")
    assert find_thumbnail(f"{tmp_path}/note.jpg", 10) is None
    with pytest.raises(ImageError) as caught:
        read_uri(f"{tmp_path}/gone.jpg")
    assert caught.value.kind == "missing"


def test_members_of_an_archive_are_read_by_several_threads(tmp_path: Path) -> None:
    data = {f"{i}.jpg": bytes([i]) * 200_000 for i in range(24)}
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, content in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    names = list(data) * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: read_uri(f"tar://{name}::{tmp_path}/t.tar"), names))
    assert all(content == data[name] for name, content in zip(names, found, strict=True))


def test_a_thumbnail_is_upright_and_no_larger_than_asked() -> None:
    small = thumbnail(jpeg(400, 200, orientation=6), 50)
    assert small.size == (25, 50) and small.mode == "RGB"
    assert np.abs(np.asarray(small, int) - (200, 30, 30)).max() < 6
    assert thumbnail(jpeg(20, 10), 50).size == (20, 10)  # never enlarged


def test_a_sheet_holds_each_tile_in_its_place() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    tiles = [Tile(Image.new("RGB", (40, 40), colour), ["0.5", "a key"]) for colour in colours]
    plain = contact_sheet([Strip("first", tiles), Strip("second", tiles[:2])], 40)
    pixels = np.asarray(plain)
    centres = []
    for colour in colours:
        ys, xs = np.nonzero((pixels == colour).all(axis=2))
        centres.append((int(xs.mean()), sorted(set(ys.tolist()))))
        assert len(xs) == 1600 * (1 if colour == colours[2] else 2)
    assert [x for x, _ in centres] == sorted(x for x, _ in centres)
    framed = contact_sheet(
        [Strip("a title that is far too long for the sheet", [Tile(tiles[0].image, (), GOOD), Tile(None, (), BAD)])], 40
    )
    found = {tuple(colour) for colour in np.asarray(framed).reshape(-1, 3).tolist()}
    assert {(22, 163, 74), (220, 38, 38), (250, 0, 0)} <= found
    assert framed.width == 8 + 2 * (40 + 2 * FRAME + 8)
    assert contact_sheet([]).size == (8 + 128 + 2 * FRAME + 8, 8)


def test_a_picture_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match="no picture ends with '.txt'"):
        check_name("a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(SifBatchError, match="cannot be written"):
        write_picture(str(tmp_path / "file/a.png"), Image.new("RGB", (4, 4)))
    write_picture(str(tmp_path / "new/a.webp"), Image.new("RGB", (4, 4)))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.webp"]

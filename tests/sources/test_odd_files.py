"""The real odd and hostile files: each has one outcome, and it is the one that its kind of damage says."""

import csv
import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Finished

from sif_batch.failures import PERMANENT, ImageError
from sif_batch.images.decode import decode
from sif_batch.sources.listing import list_sources, parse_sources

# What plain Pillow says of a file, by the beginning of its message, and what we make of it.
EXPECTED = {
    "DecompressionBombError": "too_large",
    "NotImplementedError": "unsupported",
    "UnidentifiedImageError": "not_an_image",
    "EOFError: attempt to seek outside sequence": "ok",  # only the first frame is wanted
    "OSError: Truncated File Read": "truncated",
    "OSError: image file is truncated": "truncated",
    "OSError: Unable to locate Ghostscript": "unsupported",
    "OSError: Unsupported": "unsupported",
    "OSError: cannot find loader": "unsupported",
    "OSError": "corrupt",
    "ValueError: Decompressed data too large": "too_large",
    "ValueError": "corrupt",
}
ITS_OWN = {
    "avif/hopper.heif": "ok",  # by pi-heif
    "crash-2020-10-test.tif": "unsupported",  # TIFFs that Pillow does not know
    "crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif": "corrupt",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "corrupt",
    "libtiff_segfault.tif": "too_large",  # of 65535 bands
    "hopper_webp.tif": "unsupported",  # a compression that Pillow's libtiff lacks
    "fli_oob/04r/initial.fli": "too_large",
    "l2rgb_read.bmp": "too_large",
    "broken_data_stream.png": "corrupt",  # its first frame is fine to look at, its data is not
    "truncated_end_chunk.png": "truncated",
    "apng/chunk_no_fctl.png": "corrupt",
}


def expected_of(row: dict[str, str]) -> str:
    own = ITS_OWN.get(row["path"].removeprefix("pillow/Tests/images/"))
    if own is not None:
        return own
    if row["outcome"] == "ok":
        return "ok"
    said = f"{row['outcome'].removeprefix('error:')}: {row['message']}"
    return next(kind for beginning, kind in EXPECTED.items() if said.startswith(beginning))


@pytest.mark.filterwarnings("ignore")
def test_each_odd_file_has_the_outcome_that_its_damage_says(test_data: Callable[[str], Path]) -> None:
    pytest.importorskip("tifffile")
    folder = test_data("odd-files")
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong, seen = [], Counter[str]()
    for row in rows:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decoded = decode((folder / row["path"]).read_bytes())
            found = "ok"
            assert decoded.pixels.mode == "RGB" and decoded.pixels.size == (decoded.width, decoded.height)
        except ImageError as error:
            found = error.kind
            assert found in PERMANENT and str(error)
        seen[found] += 1
        if found != expected_of(row):
            wrong.append((row["path"], found, expected_of(row)))
    assert not wrong
    assert seen.total() == len(rows) == 920


def test_every_odd_file_is_listed_once_or_ignored_by_its_name(test_data: Callable[[str], Path]) -> None:
    folder = test_data("odd-files")
    listing = list_sources(parse_sources([str(folder)]))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(listing.entries) + sum(listing.ignored.values()) == len(files) == 921
    assert len(set(listing.entries["path"].to_pylist())) == len(listing.entries)


@pytest.mark.slow
def test_a_run_accounts_for_every_odd_file(
    sif_batch: Callable[..., Finished], test_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = test_data("odd-files")
    counts = sif_batch("run", folder, tmp_path / "root", "--max-failures", 1, "--json").json
    assert counts["listed"] == counts["embedded"] + counts["failed"] == 877
    assert counts["listed"] + counts["ignored"] == 921
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        expected = {row["path"]: expected_of(row) for row in csv.DictReader(file)}
    failures = sif_batch("status", tmp_path / "root", "--failures", "--json").json["failures"]
    for failure in failures:
        assert failure["kind"] == expected[failure["key"].removeprefix("odd-files/")], failure
    assert sum(counts["failed_by_kind"].values()) == len(failures) == counts["failed"]
    assert json.dumps(failures)

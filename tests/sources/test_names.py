import hashlib
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import checked

from sif_batch.ledger.reconcile import find_duplicates
from sif_batch.sources.listing import keys_of
from sif_batch.sources.names import folder_of, hash_of, key_of, local_of, text_of

NFC, NFD = "caf\u00e9.jpg", "cafe\u0301.jpg"
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Texts in which the special cases meet often: separators, composition in both forms, Hangul, escapes.
awkward = st.lists(
    st.sampled_from(
        ["a", "/", ":", "::", "%", "%3A", "e\u0301", "\u00e9", "\u1112\u1161\u11ab", "\ud55c", "\u212b", "\0"]
    ),
    max_size=8,
).map("".join)


def test_a_key_is_the_source_and_the_path() -> None:
    assert key_of("photos", "cats/1.jpg") == "photos/cats/1.jpg"


def test_a_key_is_in_nfc() -> None:
    assert NFC != NFD
    assert key_of("photos", NFD) == key_of("photos", NFC) == f"photos/{NFC}"


@pytest.mark.parametrize(
    ("path", "key"),
    [("a::b.jpg", "s/a%3A%3Ab.jpg"), (":::", "s/%3A%3A:"), ("a:b", "s/a:b"), ("::::", "s/%3A%3A%3A%3A")],
)
def test_a_literal_double_colon_is_escaped(path: str, key: str) -> None:
    assert key_of("s", path) == key


def test_the_hash_is_big_endian_blake2b_of_the_utf_8_key() -> None:
    key = f"photos/{NFC}"
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    assert hash_of(key) == sum(byte << 8 * (7 - i) for i, byte in enumerate(digest))


def test_the_hash_is_what_b2sum_says() -> None:
    assert hash_of("photos/cats/1.jpg") == 0x9B2F5CCD1C7508A4  # printf photos/cats/1.jpg | b2sum -l 64


def test_bytes_that_are_not_utf_8_are_escaped() -> None:
    assert text_of(os.fsdecode(b"caf\xe9/\xff.jpg")) == "caf%E9/%FF.jpg"
    assert text_of(os.fsdecode("café".encode())) == "café"


@checked
@given(st.binary(max_size=20))
def test_any_file_name_becomes_text_that_utf_8_can_hold(name: bytes) -> None:
    text = text_of(os.fsdecode(name))
    text.encode("utf-8")
    valid = name.decode("utf-8", "ignore")
    assert text == valid or "%" in text


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"100%.jpg", b"%E9.jpg", "caf\u00e9.jpg".encode()])
def test_the_file_is_found_again_by_its_text(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(tmp_path, os.fsdecode(name))
    Path(path).touch()
    assert local_of(text_of(path)) == path


def test_a_text_that_no_file_has_stays_as_it_is(tmp_path: Path) -> None:
    assert local_of(f"{tmp_path}/%E9.jpg") == f"{tmp_path}/%E9.jpg"


def test_the_folder_is_the_parent_path_inside_the_source() -> None:
    assert [folder_of(path) for path in ("a/b/1.jpg", "a/1.jpg", "1.jpg")] == ["a/b", "a", ""]


@checked
@given(st.lists(st.tuples(st.sampled_from(["s", "photos"]), words | awkward), max_size=20))
def test_keys_of_a_column_equal_keys_one_by_one(pairs: list[tuple[str, str]]) -> None:
    sources, paths = [s for s, _ in pairs], [p for _, p in pairs]
    entries = pa.table({"source": pa.array(sources, pa.string()), "path": pa.array(paths, pa.string())})
    keys = keys_of(entries)
    assert keys.to_pylist() == [key_of(source, path) for source, path in pairs]
    seen: set[str] = set()
    twins = []
    for source, path in pairs:
        twins.append(key_of(source, path) in seen)
        seen.add(key_of(source, path))
    assert find_duplicates(entries).tolist() == twins


def test_keys_of_a_column_in_several_chunks_are_in_nfc() -> None:
    entries = pa.table(
        {"source": pa.chunked_array([["s"], ["s", "s"]]), "path": pa.chunked_array([[NFD, "a::b"], [NFC]])}
    )
    assert keys_of(entries).to_pylist() == [f"s/{NFC}", "s/a%3A%3Ab", f"s/{NFC}"]
    assert all(unicodedata.is_normalized("NFC", key) for key in keys_of(entries).to_pylist())

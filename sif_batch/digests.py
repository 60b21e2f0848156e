"""Equal values give equal bytes give equal names: canonical JSON, sha256 of bytes and of files."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as sorted, compact UTF-8 JSON: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(path: Path) -> str:
    """The hex digest of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data: bytes, length: int = 64) -> str:
    """The first `length` hex digits of sha256."""
    return hashlib.sha256(data).hexdigest()[:length]

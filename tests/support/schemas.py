"""The JSON Schemas of what commands print and write."""

import json
from typing import Any

from paths import REPOSITORY

SCHEMAS = REPOSITORY / "docs" / "schemas"


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found

"""Many visitors of one page at the same moment, each of whom must see what he asked for and nothing else."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import PHOTOS
from photo_roots import publish_photos
from served import served

pytest.importorskip("streamlit", reason="needs the extra page")
from benchmarks.page import Visitor
from sif_batch.query.index import Index

pytestmark = pytest.mark.slow
VISITORS, ROUNDS = 24, 5


def test_nobody_is_shown_the_answer_of_another(tmp_path: Path) -> None:
    """All ask at once, each another image and filter; each time they think better of a first question."""
    for kind in ("dalmatian", "lotus", "pizza", "rooster"):
        shutil.copytree(PHOTOS / kind, tmp_path / "photos" / kind)
    publish_photos(tmp_path / "root", tmp_path / "photos", tmp_path / "scratch")
    index = Index.open(tmp_path / "root")
    keys = np.array(index.column("key").to_pylist())
    filters = ["", "folder = 'lotus'", "folder != 'pizza'", "width >= 250"]

    async def ask(visitor: Visitor, first: str, key: str, where: str) -> list[str]:
        await visitor.send(first, where)
        return (await visitor.ask(key, where))[1]

    async def visit(url: str) -> None:
        crowd = [await Visitor(url).open() for _ in range(VISITORS)]
        for round in range(ROUNDS):
            order = np.random.default_rng(round).permutation(keys)
            asked = [(*map(str, order[[i, -i]]), filters[i % len(filters)]) for i in range(1, VISITORS + 1)]
            found = await asyncio.gather(
                *(ask(visitor, *question) for visitor, question in zip(crowd, asked, strict=True))
            )
            for (_, key, where), shown in zip(asked, found, strict=True):
                assert shown == [hit.key for hit in index.search(key=key, k=24, where=where or None)], (key, where)
        for visitor in crowd:
            await visitor.close()

    with served(tmp_path / "root", tmp_path) as url:
        asyncio.run(visit(url))

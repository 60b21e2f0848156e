"""The web page on a release of many rows: how soon it opens, how fast it answers, and 20 visitors at once.

python -m benchmarks.page [--rows 100000] [--visitors 20] [--rounds 10] [--scratch DIR] [--json]

The collection: the example photos over and over, each file with bytes of its own, each vector with noise. Visitors
speak Streamlit's own protocol, without a browser, which would be what is measured; Chromium opens the first page.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa

from sif_batch.config import IndexSettings, RootRecord, Source
from sif_batch.embedding.child_cache import load_encoder
from sif_batch.encoders.installed import built_in_spec, install_encoder
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.machine.memory import peak_bytes
from sif_batch.query.index import Index
from sif_batch.sources.listing import LISTING_SCHEMA, Listing
from sif_batch.sources.names import hash_of, key_of
from sif_batch.storage.store import Store

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
PART = 1000  # rows
NOISE = 0.6  # of a vector's own spread
FIRST_PAGES, TURNS = 5, 30  # visits by Chromium; questions of a single visitor


def make_collection(folder: Path, rows: int) -> None:
    """photos/ and root/ with a release of so many images."""
    store, spec = Store(str(folder / "root")), built_in_spec("efficientnet_lite0")
    source = Source(name="photos", url=str(folder / "photos"))
    install_encoder(store, spec)
    store.create("root.json", RootRecord(sources=(source,), encoder=spec.id, index=IndexSettings()).canonical())
    paths = sorted(PHOTOS.rglob("*.jpg"))
    contents = [path.read_bytes() for path in paths]
    encoder = load_encoder(store.url, spec.id, "cpu")
    vectors = encoder.embed(np.stack([encoder.read_image(content)[0] for content in contents]))
    for path in paths:
        (folder / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
    names = [f"{paths[i % len(paths)].parent.name}/{i:06d}.jpg" for i in range(rows)]

    def make_part(start: int) -> None:
        random, made, spans = np.random.default_rng(start), [], []
        for i in range(start, min(start + PART, rows)):
            photo, content = i % len(paths), contents[i % len(paths)] + b"%016d" % i
            (folder / "photos" / names[i]).write_bytes(content)
            noise = random.normal(size=vectors.shape[1]) * NOISE * vectors[photo].std()
            key, span = key_of(source.name, names[i]), {"source": source.name, "path": names[i], "version": "1"}
            made.append(
                span
                | {"key": key, "member": None, "attempt": 1, "hash": hash_of(key), "width": 300, "height": 225}
                | {"sha256": hashlib.sha256(content).digest(), "fields": None, "error_kind": None, "error": None}
                | {"embedding": np.maximum(vectors[photo] + noise, 0).astype(np.float16)}
            )
            spans.append(span | {"first": 0, "last": 0, "end": True, "attempt": 1})
        name = hashlib.sha256(b"%d" % start).hexdigest()[:32]
        store.create(part_path(spec.id, name), encode_part(made, spans, spec.id, {"made": "up"}))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make_part, range(0, rows, PART)))
    columns = [pa.repeat(source.name, rows), names, np.ones(rows, np.int64), pa.repeat("1", rows)]
    Listing(pa.table(columns, schema=LISTING_SCHEMA)).save(store)
    subprocess.run([sys.executable, "-m", "sif_batch.jobs.cli", "index", store.url], check=True, stdout=sys.stderr)


class Visitor:
    """A session of the page, spoken to as Streamlit's frontend does."""

    def __init__(self, url: str):
        self.url = url.replace("http:", "ws:") + "/_stcore/stream"
        self.large: dict[str, Any] = {}  # messages by their hash, which Streamlit sends but once

    async def open(self) -> "Visitor":
        from websockets.asyncio.client import connect

        self.socket = await connect(self.url, subprotocols=["streamlit"], max_size=None)  # type: ignore[list-item]
        return self

    async def ask(self, key: str, where: str = "") -> tuple[float, list[str]]:
        """Seconds until the page shows the images like that one, and their keys."""
        began = time.perf_counter()
        await self.send(key, where)
        while True:
            asked, keys = await self.shown()
            if asked == key:
                return time.perf_counter() - began, keys

    async def send(self, key: str, where: str = "") -> None:
        """Go to the address of a question, without waiting for its answer."""
        from streamlit.proto.BackMsg_pb2 import BackMsg

        asked = BackMsg()
        asked.rerun_script.query_string = urlencode({"key": key} | ({"where": where} if where else {}))
        await self.socket.send(asked.SerializeToString())

    async def shown(self) -> tuple[str, list[str]]:
        """What the next run of the script that reaches its end shows: the key asked with, and the keys found."""
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        asked, keys = "", list[str]()
        while True:
            message = ForwardMsg()
            message.ParseFromString(await asyncio.wait_for(self.socket.recv(), 60))  # type: ignore[arg-type]
            if message.metadata.cacheable:
                self.large[message.hash] = message
            if message.WhichOneof("type") == "ref_hash":
                message = self.large[message.ref_hash]
            kind = message.WhichOneof("type")
            if kind == "delta" and message.delta.new_element.WhichOneof("type") == "bidi_component":
                grid = json.loads(message.delta.new_element.bidi_component.json)
                asked, keys = grid["query"]["lines"][0], [card["key"] for card in grid["cards"]]
            if kind == "script_finished":
                if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                    return asked, keys
                asked, keys = "", []  # broken off for a newer question

    async def close(self) -> None:
        await self.socket.close()


async def visit(url: str, index: Index, visitors: int, rounds: int) -> dict[str, Any]:
    """Seconds of each question: of one visitor, with and without a filter, and of many who ask at the same moment."""
    all_keys = index.column("key")
    random = np.random.default_rng(0)

    def some_key() -> str:
        return str(all_keys[int(random.integers(len(index)))].as_py())

    async def check(visitor: Visitor, key: str, where: str = "") -> float:
        seconds, keys = await visitor.ask(key, where)
        expected = [hit.key for hit in index.search(key=key, k=24, where=where or None)]
        if keys != expected:
            raise SystemExit(f"a wrong answer to {key}: {keys}")
        return seconds

    alone = await Visitor(url).open()
    await check(alone, some_key())
    single = [await check(alone, some_key()) for _ in range(TURNS)]
    await alone.close()
    alone = await Visitor(url).open()
    filtered = [await check(alone, some_key(), "folder = 'pizza' and width >= 200") for _ in range(TURNS + 1)][1:]
    await alone.close()
    crowd = [await Visitor(url).open() for _ in range(visitors)]
    together = []
    for _ in range(rounds):
        asked = [some_key() for _ in crowd]
        answers = [visitor.ask(key) for visitor, key in zip(crowd, asked, strict=True)]
        for key, (seconds, keys) in zip(asked, await asyncio.gather(*answers), strict=True):
            together.append(seconds)
            if keys != [hit.key for hit in index.search(key=key, k=24)]:
                raise SystemExit(f"one of many got a wrong answer to {key}: {keys}")
    for visitor in crowd:
        await visitor.close()
    return {"query": single, "filtered": filtered, "together": together}


def open_pages(url: str) -> tuple[list[float], list[float]]:
    """Seconds from the address to the first answer in Chromium with an empty cache; then from a click to its answer."""
    from playwright.sync_api import sync_playwright

    firsts, clicks = [], []
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=arguments)
        for _ in range(FIRST_PAGES):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            began = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.locator(".card").first.wait_for(timeout=60_000)
            firsts.append(time.perf_counter() - began)
            page.wait_for_load_state("networkidle")
            for number in range(4):
                card = page.locator(".card").nth(number)
                name = str(card.get_attribute("data-key")).rpartition("/")[2]
                began = time.perf_counter()
                card.locator(".picture").click()
                page.locator(".query h2", has_text=name).wait_for(timeout=60_000)
                clicks.append(time.perf_counter() - began)
                page.wait_for_load_state("networkidle")
            context.close()
        browser.close()
    return firsts, clicks


def measure(folder: Path, visitors: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "sif_batch.jobs.cli", "serve", str(folder / "root"), "--port", "0", "--json"]
    began = time.perf_counter()
    env = os.environ | {"SIF_BATCH_CACHE": str(folder / "cache")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert server.stdout
        started = json.loads(server.stdout.readline())
        ready = time.perf_counter() - began
        firsts, clicks = open_pages(started["url"])
        seconds = asyncio.run(visit(started["url"], Index.open(str(folder / "root")), visitors, rounds))
        peak = peak_bytes(server.pid)
    finally:
        server.terminate()
        server.wait()
    return {
        "rows": started["rows"],
        "start_s": round(ready, 2),
        "first_page_s": describe(firsts),
        "click_s": describe(clicks),
        "query_s": describe(seconds["query"]),
        "filtered_query_s": describe(seconds["filtered"]),
        "visitors": visitors,
        "together_s": describe(seconds["together"]),
        "server_rss_mb": peak // 2**20,
    }


def describe(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(p95, 3),
        "worst": round(ordered[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--scratch", type=Path, help="keep the collection there, and take what is there already")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.scratch or Path(temporary)
        if not (folder / "root/LATEST").exists():
            make_collection(folder, options.rows)
        found = measure(folder, options.visitors, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:18} {value if not isinstance(value, dict) else ', '.join(f'{k} {v}' for k, v in value.items())}")


if __name__ == "__main__":
    main()

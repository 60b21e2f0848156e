"""Whatever happens to a collection, a release is what its images alone decide.

A state machine changes images and interferes with runs in any order; after each night the release must equal, byte for
byte, one that is assembled elsewhere from scratch: from the model's images, oracle vectors and the same quantizer.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from PIL import Image
from synthetic import Row as Spelled
from synthetic import entries_of, spans_of

from jobs.candidate import build, quantize_parts
from jobs.gc import collect_garbage
from jobs.progress import Reporter
from jobs.releases import publish_by_hand, rollback
from jobs.run import run
from jobs.settings import RunSettings
from jobs.verify import verify
from sif_batch.catalog import load_catalog
from sif_batch.child import close_shared_children
from sif_batch.config import BusyError, GateSettings, RootRecord, SifBatchError
from sif_batch.history import publish, read_history, read_top
from sif_batch.lease import Lease
from sif_batch.parts import encode_part, part_path
from sif_batch.quantizer import read_record
from sif_batch.query import Index
from sif_batch.release import decided_of, inputs_digest, read_manifest
from sif_batch.shards import Limits
from sif_batch.sources.names import hash_of
from sif_batch.standing import live_rows, standing_rows
from sif_batch.storage import Store, digest

NAMES = [f"{folder}/{name}.jpg" for folder in "ab" for name in "pqrst"]
CONTENTS = 6
BROKEN = b"no image"
LEDGER = ("unchanged", "embedded", "reused", "failed", "failed_before")


class Quiet(Reporter):
    def say(self, text: str) -> None: ...


class Killed(BaseException):
    """What ends a run at one of its writes, as kill -9 would."""


class Oracle:
    """Small photos, and what embedding makes of each, by their bytes: part rows without names."""

    def __init__(self, folder: Path):
        self.contents: list[bytes] = []
        source = folder / "oracle"
        source.mkdir()
        for number, photo in enumerate(sorted(PHOTOS.rglob("*.jpg"))[:: 200 // CONTENTS][:CONTENTS]):
            with Image.open(photo) as opened:
                opened.convert("RGB").resize((64 + number, 64)).save(source / f"{number}.jpg")
            self.contents.append((source / f"{number}.jpg").read_bytes())
        self.root = folder / "root"
        run(RunSettings(sources=(str(source),), root=str(self.root), workers=1), Quiet(), ("embed",))
        (part,) = self.root.glob("parts/*/*.parquet")
        table = pq.read_table(part)
        self.metadata = table.schema.metadata
        self.rows = {row["sha256"]: row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    yield Oracle(tmp_path_factory.mktemp("oracle"))
    close_shared_children()


class AnyHistory(RuleBasedStateMachine):
    oracle: ClassVar[Oracle]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.source, self.root = Path(self._folder.name, "photos"), Path(self._folder.name, "root")
        self.files: dict[str, bytes | None] = {}  # None: a link that leads nowhere
        self.served: dict[str, bytes] = {}  # of links that lead nowhere: what the last night had there
        self.night: dict[str, bytes | None] = {}  # as the last whole night saw them
        self.clock = 1_700_000_000_000_000_000
        self.killed = False

    def teardown(self) -> None:
        self._folder.cleanup()

    # What happens to images.

    def _put(self, name: str, data: bytes) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        self.clock += 1_000_000_000  # a version is told by size and time: never by how fast this machine is
        os.utime(path, ns=(self.clock, self.clock))
        self.files[name] = data
        self.served.pop(name, None)

    @initialize(contents=st.lists(st.integers(0, CONTENTS - 1), min_size=3, max_size=6))
    def begin(self, contents: list[int]) -> None:
        for name, number in zip(NAMES, contents, strict=False):
            self._put(name, self.oracle.contents[number])
        self.run_night()

    @rule(name=st.sampled_from(NAMES), number=st.integers(0, CONTENTS - 1))
    def add_or_change(self, name: str, number: int) -> None:
        self._put(name, self.oracle.contents[number])

    @rule(name=st.sampled_from(NAMES))
    def damage(self, name: str) -> None:
        self._put(name, BROKEN)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if sum(data is not None and data != BROKEN for other, data in self.files.items() if other != name) >= 2:
            (self.source / name).unlink(missing_ok=True)
            self.files.pop(name, None)
            self.served.pop(name, None)

    @rule(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES), keep=st.booleans())
    def rename_or_copy(self, name: str, other: str, keep: bool) -> None:
        data = self.files.get(name)
        if name != other and data is not None:
            self._put(other, data)
            if not keep:
                self.delete(name)

    @precondition(lambda self: not self.killed)
    @rule(name=st.sampled_from(NAMES))
    def fail_for_now(self, name: str) -> None:
        """A link to a mount that is away, where the last night had a good image."""
        data = self.night.get(name)
        if data is not None and data != BROKEN and self.files.get(name) == data:
            (self.source / name).unlink()
            (self.source / name).symlink_to("/nowhere")
            self.files[name], self.served[name] = None, data

    # Nights.

    def _settings(self, **changes: Any) -> RunSettings:
        given = {"sources": (), "root": str(self.root), "workers": 1, "limits": Limits(shard_images=3), "report": False}
        if not self.root.exists():
            given["sources"] = (str(self.source),)
        return RunSettings.model_validate(given | {"gate": GateSettings(enabled=False)} | changes)

    @rule(retry=st.booleans())
    def run_night(self, retry: bool = False) -> None:
        result = run(self._settings(retry_failed=retry), Quiet())
        self.killed, self.night = False, dict(self.files)
        assert result["listed"] == len(self.files) == sum(result[name] for name in LEDGER)
        assert (
            result["in_index"]
            == len(self._expected())
            == result["unchanged"] + sum(result[name] for name in ("embedded", "reused", "stale"))
        )
        store = Store(str(self.root))
        top = read_top(store)
        assert top is not None
        if result["outcome"] == "held":
            assert top["held"]
        else:
            assert result["outcome"] in ("published", "unchanged") and result["release"] == top["release"]
        self._compare(store, result["release"])

    @rule(write=st.integers(0, 12))
    def run_and_kill(self, write: int) -> None:
        """A run that ends at its write of this number; after it, ROOT serves what it served."""
        before = read_top(Store(str(self.root)))
        count = 0
        plain = {name: getattr(Store, name) for name in ("create", "replace", "create_folder")}

        def dying(name: str) -> Any:
            def write_once(store: Store, *arguments: Any) -> Any:
                nonlocal count
                if arguments[0] != "lease.json":
                    count += 1
                    if count > write:
                        raise Killed
                return plain[name](store, *arguments)

            return write_once

        self.killed = True
        try:
            for name in plain:
                setattr(Store, name, dying(name))
            run(self._settings(), Quiet())
        except Killed:
            pass
        finally:
            for name, function in plain.items():
                setattr(Store, name, function)
        after = read_top(Store(str(self.root)))
        assert before is not None and after is not None
        assert after == before or after["n"] == before["n"] + 1
        assert Index.open(self.root).release == after["release"]

    @rule()
    def run_beside_another(self) -> None:
        other = Lease(Store(str(self.root)), "run")
        other.take()
        with pytest.raises(BusyError):
            run(self._settings(), Quiet())
        other.release()

    # What an operator does.

    @rule()
    def roll_back(self) -> None:
        store = Store(str(self.root))
        top = read_top(store)
        assert top is not None
        try:
            entry = rollback(str(self.root))
        except SifBatchError as error:
            assert "no release before" in str(error)
            return
        assert entry["held"] and entry["release"] != top["release"]
        assert Index.open(self.root).release == entry["release"]

    @rule()
    def publish_again(self) -> None:
        store = Store(str(self.root))
        top = read_top(store)
        assert top is not None
        if top["held"]:
            entry = publish_by_hand(str(self.root))
            assert not entry["held"] and Index.open(self.root).release == entry["release"]
        else:
            with pytest.raises(SifBatchError, match="nothing is held"):
                publish_by_hand(str(self.root), top["release"])

    @rule(keep=st.integers(1, 2))
    def collect_garbage(self, keep: int) -> None:
        report = collect_garbage(str(self.root), keep, 0, True, Quiet())
        top = read_top(Store(str(self.root)))
        assert top is not None and top["release"] in report["kept_releases"]
        assert verify(str(self.root))["ok"]

    # What must be.

    def _expected(self) -> dict[str, bytes]:
        """The bytes behind each image of the index, by name."""
        good = {name: data for name, data in self.files.items() if data not in (None, BROKEN)}
        return {**good, **self.served}  # type: ignore[dict-item]

    def _compare(self, store: Store, release: str) -> None:
        """Assemble it elsewhere, from scratch."""
        manifest = read_manifest(store, f"releases/{release}")
        record = RootRecord.model_validate_json(store.read("root.json"))
        with tempfile.TemporaryDirectory() as folder:
            other = Store(str(Path(folder, "root")))
            for name in (f"encoders/{record.encoder}", f"quantizers/{manifest['quantizer']['id']}"):
                shutil.copytree(self.root / name, Path(other.path(name)))
            rows, spelled = [], []
            for name, data in self._expected().items():
                made = self.oracle.rows[bytes.fromhex(digest(data))]
                key = f"photos/{name}"
                rows.append(made | {"key": key, "path": name, "source": "photos", "hash": hash_of(key), "version": "1"})
                rows[-1]["embedding"] = np.array(made["embedding"], np.float16)
                spelled.append(Spelled(name, version="1"))
            fingerprint = json.loads(self.oracle.metadata[b"fingerprint"])
            part = encode_part(rows, spans_of(spelled).to_pylist(), record.encoder, fingerprint)
            other.create(part_path(record.encoder, "0"), part)
            catalog = load_catalog(other, record.encoder)
            standing = standing_rows(entries_of(spelled), catalog)
            live = live_rows(catalog, standing.row[standing.good], record.sources)
            decided = decided_of(manifest)
            inputs = inputs_digest(live, catalog.fingerprints, decided)
            assert inputs == manifest["inputs"]
            quantizer = read_record(other, manifest["quantizer"]["id"])
            quantize_parts(other, quantizer.id, catalog.parts, self._settings(), Quiet())
            made_of = decided | {"inputs": inputs, "fingerprints": manifest["fingerprints"]}
            again, *_ = build(other, quantizer, catalog.parts, live, made_of, None, {})
            assert again == release
            assert Index.open(other.path(f"releases/{again}")).release == release


def check(oracle: Oracle, examples: int, steps: int) -> None:
    AnyHistory.oracle = oracle
    machine = AnyHistory.TestCase()
    machine.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    machine.runTest()


def test_any_history_makes_the_release_that_its_images_decide(oracle: Oracle) -> None:
    check(oracle, 4, 8)


@pytest.mark.slow
def test_any_history_at_length(oracle: Oracle) -> None:
    check(oracle, 60, 30)


def test_a_writer_that_wakes_up_late_cannot_publish_over_the_newer(oracle: Oracle, tmp_path: Path) -> None:
    store = Store(str(shutil.copytree(oracle.root, tmp_path / "root")))
    run(RunSettings(sources=(), root=store.url, workers=1), Quiet(), ("index",))
    top = read_top(store)
    assert top is not None
    publish(store, "a" * 64, top, "passed")
    with pytest.raises(SifBatchError, match="another run published"):
        publish(store, "b" * 64, top, "passed")
    assert [entry["release"] for entry in read_history(store)][-1] == "a" * 64

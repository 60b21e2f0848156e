"""Whatever happens to a collection, a release is what its images alone decide.

A state machine changes images and interferes with runs in any order; after each night the release must equal, byte for
byte, one that is assembled elsewhere from scratch: from the model's images, oracle vectors and the same quantizer.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import Quiet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from paths import PHOTOS
from PIL import Image
from synthetic import Row as Spelled
from synthetic import entries_of, spans_of

from sif_batch.config import GateSettings, RootRecord
from sif_batch.digests import digest
from sif_batch.errors import BusyError, SifBatchError
from sif_batch.index.quantizer import read_record
from sif_batch.jobs.nightly.candidate import build, quantize_parts
from sif_batch.jobs.nightly.run import run
from sif_batch.jobs.settings import RunSettings
from sif_batch.jobs.upkeep.compact import compact
from sif_batch.jobs.upkeep.erase import erase
from sif_batch.jobs.upkeep.gc import collect_garbage
from sif_batch.jobs.upkeep.releases import publish_by_hand, rollback
from sif_batch.jobs.upkeep.verify import verify
from sif_batch.ledger.catalog_cache import load_catalog, load_whole
from sif_batch.ledger.live import live_rows
from sif_batch.ledger.parts import encode_part, part_path
from sif_batch.ledger.plan import Limits
from sif_batch.ledger.reconcile import standing_rows
from sif_batch.ledger.tombstones import read_erased
from sif_batch.machine.child import close_shared_children
from sif_batch.query.index import Index
from sif_batch.release.history import publish, read_history, read_top, sealed_releases
from sif_batch.release.manifest import decided_of, inputs_digest, read_manifest
from sif_batch.release.rebuild import read_images
from sif_batch.sources.names import hash_of
from sif_batch.storage.lease import Lease
from sif_batch.storage.store import Store

NAMES = [f"{folder}/{name}.jpg" for folder in "ab" for name in "pqrst"]
CONTENTS = 6
BROKEN = b"no image"
LEDGER = ("unchanged", "embedded", "reused", "failed", "failed_before")


class Killed(BaseException):
    """What ends a run at one of its writes, as kill -9 would."""


@contextmanager
def dying_at(write: int) -> Iterator[None]:
    """What is done ends at its write of this number."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:

        def dying(plain: Callable[..., Any]) -> Callable[..., Any]:
            def write_once(store: Store, *arguments: Any) -> Any:
                nonlocal count
                if arguments[0] != "lease.json":
                    count += 1
                    if count > write:
                        raise Killed
                return plain(store, *arguments)

            return write_once

        for name in ("create", "replace", "create_folder"):
            patch.setattr(Store, name, dying(getattr(Store, name)))
        yield


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
        self.current: dict[str, bytes | None] | None = None  # the files that the current release is of, if known
        self.versions: dict[str, int] = {}
        self.erased: set[str] = set()  # names
        self.contents: set[bytes] = set()  # that were erased
        self.passed_over: set[tuple[str, int]] = set()  # files that had such contents when they were erased
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
        self.versions[name] = self.clock
        self.served.pop(name, None)

    def _leaves_some(self, *names: str) -> bool:
        """Whether there are images for an index without these."""
        return sum(name not in names for name in self._expected()) >= 2

    @initialize(contents=st.lists(st.integers(0, CONTENTS - 1), min_size=3, max_size=6))
    def begin(self, contents: list[int]) -> None:
        for name, number in zip(NAMES, contents, strict=False):
            self._put(name, self.oracle.contents[number])
        self.run_night()

    @rule(name=st.sampled_from(NAMES), number=st.integers(0, CONTENTS - 1))
    def add_or_change(self, name: str, number: int) -> None:
        if self._leaves_some(name):
            self._put(name, self.oracle.contents[number])

    @rule(name=st.sampled_from(NAMES))
    def damage(self, name: str) -> None:
        if self._leaves_some(name):
            self._put(name, BROKEN)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if self._leaves_some(name):
            (self.source / name).unlink(missing_ok=True)
            self.files.pop(name, None)
            self.served.pop(name, None)

    @rule(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES), keep=st.booleans())
    def rename_or_copy(self, name: str, other: str, keep: bool) -> None:
        data = self.files.get(name)
        if name != other and data is not None and self._leaves_some(other):
            self._put(other, data)
            if not keep:
                self.delete(name)

    @precondition(lambda self: not self.killed)
    @rule(name=st.sampled_from(NAMES))
    def fail_for_now(self, name: str) -> None:
        """A link to a mount that is away, where the last night had a good image."""
        data = self.night.get(name)
        if data is not None and self.files.get(name) == data and self._expected().get(name) == data:
            (self.source / name).unlink()
            (self.source / name).symlink_to("/nowhere")
            self.versions[name] = 0
            self.files[name], self.served[name] = None, data

    # Nights.

    def _settings(self, **changes: Any) -> RunSettings:
        given = {"sources": (), "root": str(self.root), "workers": 1, "limits": Limits(shard_images=3), "report": False}
        if not self.root.exists():
            given["sources"] = (str(self.source),)
        return RunSettings.model_validate(given | {"gate": GateSettings(enabled=False)} | changes)

    @rule(retry=st.booleans(), retrain=st.sampled_from(["auto", "auto", "now"]))
    def run_night(self, retry: bool = False, retrain: str = "auto") -> None:
        result = run(self._settings(retry_failed=retry, retrain=retrain), Quiet())
        self.killed, self.night = False, dict(self.files)
        assert result["listed"] == len(self._listed()) == sum(result[name] for name in LEDGER)
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
            self.current = dict(self.files)
        self._compare(store, result["release"])

    @rule(write=st.integers(0, 12))
    def run_and_kill(self, write: int) -> None:
        """A run that ends at its write of this number; after it, ROOT serves what it served."""
        before = read_top(Store(str(self.root)))
        self.killed, self.current = True, None
        with suppress(Killed), dying_at(write):
            run(self._settings(), Quiet())
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
        self.current = None
        assert entry["held"] and entry["release"] != top["release"]
        assert Index.open(self.root).release == entry["release"]

    @rule()
    def publish_again(self) -> None:
        store = Store(str(self.root))
        top = read_top(store)
        assert top is not None
        self.current = None
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

    @rule(full=st.integers(2, 12))
    def compact(self, full: int) -> None:
        before = read_top(Store(str(self.root)))
        compact(str(self.root), True, Quiet(), full)
        assert read_top(Store(str(self.root))) == before and verify(str(self.root))["ok"]

    @rule(name=st.sampled_from(NAMES), write=st.integers(0, 40))
    def erase_by_name(self, name: str, write: int) -> None:
        key = f"photos/{name}"
        if self._leaves_some(name):
            done = self._erase(key, write)
            if read_erased(Store(str(self.root))).has_key(key):
                self.erased.add(name)
                self.served.pop(name, None)
            self._check_erased(done, lambda rows: pc.any(pc.equal(rows["key"], key)).as_py())

    @precondition(lambda self: not self.killed)
    @rule(number=st.integers(0, CONTENTS - 1), write=st.integers(0, 40))
    def erase_by_content(self, number: int, write: int) -> None:
        data, sha256 = self.oracle.contents[number], digest(self.oracle.contents[number])
        held = [name for name, one in self._expected().items() if one == data]
        if data not in self.served.values() and self._leaves_some(*held):
            done = self._erase(sha256, write)
            if sha256 in read_erased(Store(str(self.root))).contents:
                self.contents.add(data)
                seen = [name for name, one in self.night.items() if one == data and self.files.get(name) == data]
                self.passed_over |= {(name, self.versions[name]) for name in seen}
            self._check_erased(done, lambda rows: pc.any(pc.equal(rows["sha256"], bytes.fromhex(sha256))).as_py())

    def _erase(self, name: str, write: int) -> bool:
        """Erase, or end at the write of this number; whether it was done to its end."""
        try:
            with dying_at(write):
                erase(str(self.root), [name], True, Quiet())
            return True
        except Killed:
            self.current = None
        except SifBatchError as error:
            assert "nothing is known" in str(error) or "nothing would be left" in str(error)
        return False

    def _check_erased(self, done: bool, is_in: Callable[[pa.Table], bool]) -> None:
        store = Store(str(self.root))
        top = read_top(store)
        assert top is not None and Index.open(self.root).release == top["release"] and verify(store.url)["ok"]
        if done:
            for encoder in store.sizes("parts"):
                assert not is_in(load_whole(store, encoder).rows)
            assert not any(is_in(read_images(store, release)) for release in sealed_releases(store))
            if self.current == self.files:
                self._compare(store, top["release"])

    # What must be.

    def _listed(self) -> list[str]:
        """The files that are not passed over."""
        return [n for n in self.files if n not in self.erased and (n, self.versions[n]) not in self.passed_over]

    def _expected(self) -> dict[str, bytes]:
        """The bytes behind each image of the index, by name."""
        listed = self._listed()
        out = (None, BROKEN, *self.contents)
        good = {name: data for name, data in self.files.items() if name in listed and data not in out}
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

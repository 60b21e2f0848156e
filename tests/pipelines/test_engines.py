"""The same command on real engines: Flink and Spark, inside this machine and as standalone clusters of processes.

The default of `make test-engines` is all of it; `-m "engines and not slow"` is the cut of every commit.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Finished
from paths import PHOTOS, REPOSITORY

from scripts.engines import fetch
from scripts.engines.clusters import Cluster, end_group, flink_cluster, spark_cluster
from scripts.engines.stores import Bucket, s3_server

pytestmark = pytest.mark.engines

SHARD_IMAGES = "8"
SHARDS = 25
TIMEOUT_S = 900  # on a busy machine
PROCESS = "--environment_type=PROCESS"
Engine = list[str]


def command(
    folder: Path, root: object, engine: Engine, *options: str, source: object = PHOTOS
) -> subprocess.Popen[str]:
    """`sif-batch run` on an engine."""
    given = [source, root, "--shard-images", SHARD_IMAGES, "--json", *options, "--", *engine]
    return start(["run", *map(str, given)], folder)


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command line, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sif_batch.jobs.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )


def finish(running: subprocess.Popen[str]) -> Finished:
    try:
        out, err = running.communicate(timeout=TIMEOUT_S)
        return Finished(running.returncode, out, err)
    finally:
        end_group(running)  # type: ignore[arg-type]


def run(folder: Path, root: object, engine: Engine, *options: str, source: object = PHOTOS) -> dict[str, Any]:
    done = finish(command(folder, root, engine, *options, source=source))
    assert done.code == 0, done.err
    return done.json


@pytest.fixture(scope="module")
def local_release(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run in this machine's own process gives."""
    folder = tmp_path_factory.mktemp("local")
    return str(run(folder, folder / "root", ["--runner=FnApiRunner"])["release"])


@contextlib.contextmanager
def or_skipped() -> Iterator[None]:
    try:
        yield
    except fetch.Unavailable as reason:
        pytest.skip(f"cannot be had here: {reason}")


@pytest.fixture(scope="module")
def flink(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two task managers of two slots: one may be lost. A job is restarted ten times, five seconds apart."""
    with or_skipped():
        fetch.flink_jar()
        with flink_cluster(tmp_path_factory.mktemp("flink"), task_managers=2, slots=2) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def spark(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers of one core."""
    with or_skipped():
        fetch.spark_jar()
        with spark_cluster(tmp_path_factory.mktemp("spark")) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """It is there before the clusters, whose workers inherit its credentials as a node would have them."""
    with or_skipped(), s3_server(tmp_path_factory.mktemp("s3")) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.env.items():
            patch.setenv(name, value)
        yield served


def on(cluster: Cluster, *more: str) -> Engine:
    if cluster.master.startswith("spark://"):
        jar = f"--spark_job_server_jar={fetch.spark_jar()}"
        return ["--runner=SparkRunner", f"--spark_master_url={cluster.master}", jar, PROCESS, *more]
    jar = f"--flink_job_server_jar={fetch.flink_jar()}"
    return ["--runner=FlinkRunner", f"--flink_master={cluster.master}", jar, PROCESS, *more]


# The same release everywhere.


def as_documented(runner: str, on_cluster: bool, places: dict[str, str]) -> list[str]:
    """The arguments of the command that docs/engines.md has for an engine, its example's places replaced."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "docs/engines.md").read_text(), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("sif-batch run")]
    (line,) = [line for line in lines if runner in line and ("--environment_type" in line) == on_cluster]
    for example, place in places.items():
        assert example in line
        line = line.replace(example, place)
    return shlex.split(line)


def run_documented(folder: Path, written: list[str]) -> dict[str, Any]:
    """`written` with small shards and its result as JSON."""
    at = written.index("--")
    more = ["--shard-images", SHARD_IMAGES, "--json"]
    done = finish(start([*written[1:at], *more, *written[at:]], folder))
    assert done.code == 0, done.err
    return done.json


@pytest.mark.parametrize(
    ("runner", "jar", "fetched"),
    [("FlinkRunner", "$FLINK_JAR", fetch.flink_jar), ("SparkRunner", "$SPARK_JAR", fetch.spark_jar)],
)
def test_a_local_engine_as_documented_gives_the_local_release(
    runner: str, jar: str, fetched: Callable[[], Path], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    photos(200)
    with or_skipped():
        written = as_documented(runner, False, {jar: str(fetched())})
    found = run_documented(tmp_path, written)
    assert found["release"] == run(tmp_path, "here", [], source="photos")["release"] and found["embedded"] == 200
    assert sum(found["embedding"]["shards_by_worker"].values()) == SHARDS


def spread_over_two(found: dict[str, Any]) -> bool:
    """Whether both of a cluster's workers had a fair share of the shards."""
    shards = found["embedding"]["shards_by_worker"]
    return len(shards) == 2 and sum(shards.values()) == SHARDS and min(shards.values()) >= 3


def files_with(text: bytes, *folders: Path) -> list[Path]:
    """Logs of a cluster, what the command left, what the store holds: none may hold a secret."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(found) > 10 * len(folders) - 10
    return [path for path in found if text in path.read_bytes()]


def copy_to_buckets(bucket: Bucket) -> None:
    """The photos into the buckets that the documented commands name."""
    (bucket.folder.parent / "root").mkdir(exist_ok=True)
    for photo in PHOTOS.rglob("*.jpg"):
        target = bucket.folder.parent / "photos" / photo.relative_to(PHOTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())


def test_a_flink_cluster_as_documented_works_on_buckets(bucket: Bucket, flink: Cluster, tmp_path: Path) -> None:
    copy_to_buckets(bucket)
    places = {"flink:8081": flink.master, "$FLINK_JAR": str(fetch.flink_jar()), "s3://root": "s3://root/flink"}
    there = run_documented(tmp_path, as_documented("FlinkRunner", True, places))
    here = run(tmp_path, "s3://root/here", [], source="s3://photos")
    assert here["release"] == there["release"] and there["embedded"] == 200 and there["failed"] == 0
    assert spread_over_two(there)
    assert not files_with(b"testsecret", flink.folder, tmp_path, bucket.folder.parent)


@pytest.mark.slow
def test_a_spark_cluster_as_documented_works_on_buckets(bucket: Bucket, spark: Cluster, tmp_path: Path) -> None:
    copy_to_buckets(bucket)
    places = {"spark://spark:7077": spark.master, "$SPARK_JAR": str(fetch.spark_jar()), "s3://root": "s3://root/spark"}
    there = run_documented(tmp_path, as_documented("SparkRunner", True, places))
    here = run(tmp_path, "s3://root/also", [], source="s3://photos")
    assert here["release"] == there["release"] and there["embedded"] == 200 and there["failed"] == 0
    assert spread_over_two(there)
    assert not files_with(b"testsecret", spark.folder, tmp_path, bucket.folder.parent)


@pytest.mark.slow
def test_bulk_search_and_duplicates_on_a_cluster_are_those_of_this_machine(
    bucket: Bucket, flink: Cluster, tmp_path: Path
) -> None:
    copy_to_buckets(bucket)
    run(tmp_path, "s3://root/asked", [], source="s3://photos")
    vectors = np.random.default_rng(1).normal(size=(60, 1280)).astype(np.float32)
    asked = pa.table({"embedding": pa.array(list(vectors), pa.list_(pa.float32()))})
    pq.write_table(asked, bucket.folder.parent / "root" / "vectors.parquet", row_group_size=5)
    tables = []
    for where, engine in (("here", []), ("there", on(flink))):
        ask = ["search", "s3://root/asked", "--queries", "s3://root/vectors.parquet", "-k", "5"]
        find = ["duplicates", "s3://root/asked", "--threshold", "0.6"]
        for command_line, out in ((ask, f"hits-{where}.parquet"), (find, f"duplicates-{where}.parquet")):
            done = finish(start([*command_line, "--out", f"s3://root/{out}", "--json", "--", *engine], tmp_path))
            assert done.code == 0, done.err
            tables.append(pq.read_table(bucket.folder.parent / "root" / out))
    assert tables[0].num_rows == 300 and tables[1].num_rows > 0
    assert tables[0].equals(tables[2]) and tables[1].equals(tables[3])


# Faults. Each ends a process by kill -9 while shards are in work.


def wait_for_files(root: Path, number: int, folder: str) -> None:
    """Until so many stand, and at most a few more."""
    deadline = time.monotonic() + TIMEOUT_S
    while len(list(root.glob(f"{folder}/*/*.parquet"))) < number:
        assert time.monotonic() < deadline, f"no {folder} after {TIMEOUT_S} s"
        time.sleep(0.02)


def processes(text: str) -> dict[int, list[str]]:
    """The processes whose command line holds `text`: number -> arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(text in argument for argument in arguments):
                    found[int(entry.name)] = arguments
    return found


def descends_from(pid: int, ancestors: set[int]) -> bool:
    while pid > 1:
        if pid in ancestors:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def kill_one(cluster: Cluster, text: str) -> None:
    """kill -9 a process of the cluster that `text` tells."""
    ours = {worker.pid for worker in cluster.workers}
    found = [pid for pid in processes(text) if descends_from(pid, ours)]
    assert found, f"no process of {text}"
    os.kill(found[0], signal.SIGKILL)


def kill_worker(cluster: Cluster) -> None:
    kill_one(cluster, "apache_beam.runners.worker.sdk_worker_main")


def kill_executor(cluster: Cluster) -> None:
    kill_one(cluster, "CoarseGrainedExecutorBackend")


def kill_task_manager(cluster: Cluster) -> None:
    """One that has a Python worker, so that something is lost."""
    busy = list(processes("apache_beam.runners.worker.sdk_worker_main"))
    chosen = next(w for w in cluster.workers if any(descends_from(pid, {w.pid}) for pid in busy))
    os.killpg(chosen.pid, signal.SIGKILL)
    cluster.workers.remove(chosen)


def disturbed(
    tmp_path: Path, engine: Engine, cluster: Cluster, faults: dict[str, Callable[[Cluster], None]]
) -> Finished:
    """A run that meets a fault after a few files in each folder of ROOT: parts in embed, codes in quantize."""
    running = command(tmp_path, tmp_path / "root", engine)
    try:
        for folder, kill in faults.items():
            wait_for_files(tmp_path / "root", 3, folder)
            kill(cluster)
    except BaseException:
        end_group(running)  # type: ignore[arg-type]
        raise
    return finish(running)


def settle(done: Finished, tmp_path: Path, engine: Engine, release: str, retried: bool) -> None:
    """The run has come through by the engine's retries; or it has ended clearly, and the same command finishes."""
    if retried:
        assert done.code == 0, done.err
        found = done.json
    else:
        assert done.code == 1 and done.json["error"] and done.json["remedy"], done.out
        assert "Traceback" not in done.err, done.err
        found = run(tmp_path, tmp_path / "root", engine)
    assert found["release"] == release
    assert found["listed"] == 200 and found["failed"] == 0


@pytest.mark.slow
def test_flink_survives_killed_python_workers(flink: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(flink), flink, {"parts": kill_worker, "codes": kill_worker})
    settle(done, tmp_path, on(flink), local_release, retried=True)


@pytest.mark.slow
def test_spark_survives_killed_python_workers(spark: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(spark), spark, {"parts": kill_worker, "codes": kill_worker})
    settle(done, tmp_path, on(spark), local_release, retried=True)


@pytest.mark.slow
def test_spark_survives_killed_executors(spark: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(spark), spark, {"parts": kill_executor, "codes": kill_executor})
    settle(done, tmp_path, on(spark), local_release, retried=True)


@pytest.mark.slow
def test_flink_survives_killed_task_managers(tmp_path: Path, local_release: str) -> None:
    """Three, of which one is lost in embed and one in quantize."""
    with or_skipped(), flink_cluster(tmp_path / "cluster", task_managers=3, slots=2) as cluster:
        enough = on(cluster, "--parallelism=2")  # the last may take all of it
        done = disturbed(tmp_path, enough, cluster, {"parts": kill_task_manager, "codes": kill_task_manager})
        settle(done, tmp_path, enough, local_release, retried=True)
        assert len(cluster.workers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["parts", "codes"])
@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_a_job_survives_its_driver_and_harms_nothing(
    engine: str, folder: str, request: pytest.FixtureRequest, tmp_path: Path, local_release: str
) -> None:
    """A run on this machine publishes meanwhile, and what the job writes late, parts or codes, changes nothing."""
    cluster = request.getfixturevalue(engine)
    running = command(tmp_path, tmp_path / "root", on(cluster))
    try:
        wait_for_files(tmp_path / "root", 3, folder)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert jobs_of(cluster), "the job ended with its driver"
        found = run(tmp_path, tmp_path / "root", [])
        assert found["release"] == local_release and found["failed"] == 0
        wait_until(lambda: not jobs_of(cluster), "the job does not end")
    finally:
        end_group(running)  # type: ignore[arg-type]
    wait_until(lambda: not jobs_of(cluster), "the job outlives its job server")
    assert run(tmp_path, tmp_path / "root", [])["outcome"] == "unchanged"
    assert verified(tmp_path / "root")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_a_signal_cancels_the_job_on_the_cluster(
    engine: str, sent: str, code: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cluster = request.getfixturevalue(engine)
    running = command(tmp_path, tmp_path / "root", on(cluster))
    try:
        wait_for_files(tmp_path / "root", 1, "parts")
        os.kill(running.pid, signal.Signals[sent])
        _, err = running.communicate(timeout=900)
        assert running.returncode == code and "Traceback" not in err, err
        wait_until(lambda: not jobs_of(cluster), "the job lives on")
    finally:
        end_group(running)  # type: ignore[arg-type]


@pytest.mark.slow
def test_flink_without_restarts_ends_clearly_and_the_same_command_finishes(tmp_path: Path, local_release: str) -> None:
    with or_skipped(), flink_cluster(tmp_path / "cluster", task_managers=1, slots=1, restarts=0) as cluster:
        done = disturbed(tmp_path, on(cluster), cluster, {"parts": kill_worker})
        settle(done, tmp_path, on(cluster), local_release, retried=False)
        unseen(cluster, tmp_path)


def unseen(cluster: Cluster, tmp_path: Path) -> None:
    """A ROOT, and photos, that are not on the nodes: the error says what is missing where, and what to do."""
    for folder in ("photos", "root2"):
        (tmp_path / folder).mkdir()
    for photo in sorted(PHOTOS.rglob("*.jpg"))[:16]:
        shutil.copyfile(photo, tmp_path / "photos" / f"{photo.parent.name}-{photo.name}")
    for hidden, said in (("root2", "does not see plan"), ("photos", "does not see")):
        worker = tmp_path / f"worker-{hidden}"
        inside = f"mount -t tmpfs none {tmp_path / hidden} && exec {Path(sys.executable).with_name('sif-batch-worker')}"
        worker.write_text(f'#!/bin/sh\nexec unshare -m sh -c \'{inside} "$@"\' worker "$@"\n')
        worker.chmod(0o755)
        blind = on(cluster, f'--environment_config={{"command": "{worker}"}}')
        done = finish(command(tmp_path, tmp_path / f"root2/{hidden}", blind, source=tmp_path / "photos"))
        assert done.code == 1 and said in done.json["error"] and "mount" in done.json["remedy"], done.out


def jobs_of(cluster: Cluster) -> list[Any]:
    """The jobs that still run on a cluster."""
    if cluster.master.startswith("spark://"):
        return list(cluster.ask("/json/")["activeapps"])
    return [job for job in cluster.ask("/jobs")["jobs"] if job["status"] in ("RUNNING", "RESTARTING", "CANCELLING")]


def wait_until(true: Callable[[], bool], else_said: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, else_said
        time.sleep(0.5)


def verified(root: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "sif_batch.jobs.cli", "verify", str(root), "--json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=TIMEOUT_S,
    )
    return bool(json.loads(done.stdout)["ok"])

"""The same command on real engines: Flink and Spark, inside this machine and as standalone clusters of processes.

The default of `make test-engines` is all of it; `-m "engines and not slow"` is the cut of every commit.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PHOTOS, REPOSITORY, Finished

from scripts.engines import fetch
from scripts.engines.clusters import Cluster, end_group, flink_cluster, spark_cluster
from scripts.engines.stores import Bucket, s3_server

pytestmark = pytest.mark.engines

SHARD_IMAGES = "8"
SHARDS = 25
TIMEOUT_S = 400
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
        [sys.executable, "-m", "jobs.cli", *arguments],
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
    (block,) = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "docs/engines.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("sif-batch run")]
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


def test_a_flink_cluster_gives_the_local_release_from_all_its_workers(
    flink: Cluster, tmp_path: Path, local_release: str
) -> None:
    found = run(tmp_path, tmp_path / "root", on(flink))
    assert found["release"] == local_release and found["embedded"] == 200
    shards = found["embedding"]["shards_by_worker"]
    assert len(shards) == 2 and sum(shards.values()) == SHARDS and min(shards.values()) >= 3, shards


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


@pytest.mark.slow
def test_a_spark_cluster_as_documented_works_on_buckets(bucket: Bucket, spark: Cluster, tmp_path: Path) -> None:
    copy_to_buckets(bucket)
    places = {"spark://spark:7077": spark.master, "$SPARK_JAR": str(fetch.spark_jar()), "s3://root": "s3://root/spark"}
    there = run_documented(tmp_path, as_documented("SparkRunner", True, places))
    here = run(tmp_path, "s3://root/also", [], source="s3://photos")
    assert here["release"] == there["release"] and there["embedded"] == 200 and there["failed"] == 0


@pytest.mark.slow
def test_a_spark_cluster_gives_the_local_release_from_all_its_workers(
    spark: Cluster, tmp_path: Path, local_release: str
) -> None:
    found = run(tmp_path, tmp_path / "root", on(spark))
    assert found["release"] == local_release and found["embedded"] == 200
    shards = found["embedding"]["shards_by_worker"]
    assert len(shards) == 2 and sum(shards.values()) == SHARDS and min(shards.values()) >= 3, shards


# Faults. Each ends a process by kill -9 while shards are in work.


def wait_for_parts(root: Path, number: int, folder: str = "parts") -> None:
    """Until so many stand, and at most a few more."""
    deadline = time.monotonic() + 300
    while len(list(root.glob(f"{folder}/*/*.parquet"))) < number:
        assert time.monotonic() < deadline, f"no {folder} after 300 s"
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
    os.killpg(cluster.workers[0].pid, signal.SIGKILL)


def disturbed(
    tmp_path: Path, engine: Engine, cluster: Cluster, kill: Callable[[Cluster], None], folder: str = "parts"
) -> Finished:
    """A run that meets a fault after a few parts, or codes."""
    running = command(tmp_path, tmp_path / "root", engine)
    try:
        wait_for_parts(tmp_path / "root", 3, folder)
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
@pytest.mark.parametrize("folder", ["parts", "codes"])
def test_flink_survives_a_killed_python_worker(folder: str, flink: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(flink), flink, kill_worker, folder)
    settle(done, tmp_path, on(flink), local_release, retried=True)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["parts", "codes"])
def test_spark_survives_a_killed_python_worker(folder: str, spark: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(spark), spark, kill_worker, folder)
    settle(done, tmp_path, on(spark), local_release, retried=True)


@pytest.mark.slow
def test_spark_survives_a_killed_executor(spark: Cluster, tmp_path: Path, local_release: str) -> None:
    done = disturbed(tmp_path, on(spark), spark, kill_executor)
    settle(done, tmp_path, on(spark), local_release, retried=True)


@pytest.mark.slow
def test_a_flink_job_survives_its_driver_and_harms_nothing(flink: Cluster, tmp_path: Path, local_release: str) -> None:
    """A run on this machine publishes meanwhile, and the job's late parts change nothing."""
    running = command(tmp_path, tmp_path / "root", on(flink))
    try:
        wait_for_parts(tmp_path / "root", 3)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        found = run(tmp_path, tmp_path / "root", [])
        assert found["release"] == local_release and found["failed"] == 0
        deadline = time.monotonic() + 300
        while any(job["status"] == "RUNNING" for job in flink.ask("/jobs")["jobs"]) and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        end_group(running)  # type: ignore[arg-type]
    assert run(tmp_path, tmp_path / "root", [])["outcome"] == "unchanged"
    assert verified(tmp_path / "root")


@pytest.mark.slow
def test_ctrl_c_cancels_the_job_on_the_cluster(flink: Cluster, tmp_path: Path) -> None:
    running = command(tmp_path, tmp_path / "root", on(flink))
    try:
        wait_for_parts(tmp_path / "root", 1)
        os.kill(running.pid, signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 130
        deadline = time.monotonic() + 60
        while any(job["status"] == "RUNNING" for job in flink.ask("/jobs")["jobs"]):
            assert time.monotonic() < deadline, "the job lives on"
            time.sleep(0.5)
    finally:
        end_group(running)  # type: ignore[arg-type]


@pytest.mark.slow
def test_flink_survives_a_killed_task_manager(tmp_path: Path, local_release: str) -> None:
    with or_skipped(), flink_cluster(tmp_path / "cluster", task_managers=2, slots=2) as cluster:
        half = on(cluster, "--parallelism=2")  # the other may take all of it
        done = disturbed(tmp_path, half, cluster, kill_task_manager)
        settle(done, tmp_path, half, local_release, retried=True)


@pytest.mark.slow
def test_flink_without_restarts_ends_clearly_and_the_same_command_finishes(tmp_path: Path, local_release: str) -> None:
    with or_skipped(), flink_cluster(tmp_path / "cluster", task_managers=1, slots=1, restarts=0) as cluster:
        done = disturbed(tmp_path, on(cluster), cluster, kill_worker)
        settle(done, tmp_path, on(cluster), local_release, retried=False)


def verified(root: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "verify", str(root), "--json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=TIMEOUT_S,
    )
    return bool(json.loads(done.stdout)["ok"])

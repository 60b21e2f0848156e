"""What the command line of each engine must say, checked before anything starts. No engine runs here."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sif_batch.errors import SifBatchError
from sif_batch.pipelines.engines import check_options, in_this_process
from sif_batch.pipelines.runner import as_told, telling_why

SLOTS = 6


class Overview(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"slots-total": self.server.slots}).encode())  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(params=[SLOTS])
def flink(request: pytest.FixtureRequest) -> Iterator[str]:
    """What answers like the web page of a Flink cluster."""
    server = HTTPServer(("127.0.0.1", 0), Overview)
    server.slots = request.param  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job server's jar, and a Java to run it, as far as the check looks."""
    java = tmp_path / "java-home" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "java-home"))
    (tmp_path / "server.jar").touch()
    return str(tmp_path / "server.jar")


def refused(*arguments: str) -> SifBatchError:
    with pytest.raises(SifBatchError) as raised:
        check_options(arguments)
    assert raised.value.remedy
    return raised.value


def test_without_options_everything_runs_in_this_process() -> None:
    for arguments in ([], ["--runner=DirectRunner"], ["--runner", "FnApiRunner"]):
        checked = check_options(arguments)
        assert checked == ["--runner=FnApiRunner"] and in_this_process(checked)


def test_what_is_not_known_goes_on_to_beam() -> None:
    assert check_options(["--job_name=x", "--experiments=a"]) == [
        "--job_name=x",
        "--experiments=a",
        "--runner=FnApiRunner",
    ]


def test_local_flink_and_spark_work_in_this_process(jar: str) -> None:
    for arguments in (
        ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}"],
        ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--flink_master=[auto]"],
        ["--runner=SparkRunner", f"--spark_job_server_jar={jar}"],
        ["--runner=SparkRunner", f"--spark_job_server_jar={jar}", "--spark_master_url=local[4]"],
    ):
        checked = check_options(arguments)
        assert "--environment_type=LOOPBACK" in checked and in_this_process(checked)


def test_a_cluster_takes_all_its_slots_and_the_worker_of_this_installation(flink: str, jar: str) -> None:
    checked = check_options(
        [
            "--runner=FlinkRunner",
            f"--flink_master={flink}",
            f"--flink_job_server_jar={jar}",
            "--environment_type=PROCESS",
        ]
    )
    assert not in_this_process(checked)
    assert f"--parallelism={SLOTS}" in checked
    (config,) = [a.partition("=")[2] for a in checked if a.startswith("--environment_config=")]
    assert os.access(json.loads(config)["command"], os.X_OK)


def test_docker_that_nobody_asked_for_is_refused(flink: str, listening: str) -> None:
    for arguments in (
        ["--runner=FlinkRunner", f"--flink_master={flink}"],
        ["--runner=SparkRunner", f"--spark_master_url=spark://{listening}"],
    ):
        error = refused(*arguments)
        assert "Docker" in str(error) and "--environment_type=PROCESS" in error.remedy
    assert "no sif-batch" in str(refused(*arguments, "--environment_type=DOCKER"))


def test_docker_with_an_image_is_taken(listening: str, jar: str) -> None:
    asked = [f"--spark_master_url=spark://{listening}", "--environment_type=DOCKER", "--environment_config=my/image"]
    assert not in_this_process(check_options(["--runner=SparkRunner", f"--spark_job_server_jar={jar}", *asked]))


def test_more_parallelism_than_slots_would_wait_for_ever(flink: str, jar: str) -> None:
    error = refused(
        "--runner=FlinkRunner",
        f"--flink_master={flink}",
        f"--flink_job_server_jar={jar}",
        "--environment_type=PROCESS",
        f"--parallelism={SLOTS + 1}",
    )
    assert f"has {SLOTS} slots" in str(error)


@pytest.mark.parametrize("flink", [0], indirect=True)
def test_a_cluster_without_task_managers(flink: str, jar: str) -> None:
    cluster = ["--runner=FlinkRunner", f"--flink_master={flink}", "--environment_type=PROCESS"]
    assert "no task slots" in str(refused(*cluster, f"--flink_job_server_jar={jar}"))


def test_a_cluster_that_is_not_there(listening: str, jar: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    process = "--environment_type=PROCESS"
    flink, spark = f"--flink_job_server_jar={jar}", f"--spark_job_server_jar={jar}"
    assert gone in str(refused("--runner=FlinkRunner", f"--flink_master={gone}", flink, process))
    assert gone in str(refused("--runner=SparkRunner", f"--spark_master_url=spark://{gone}", spark, process))
    assert gone in str(refused("--runner=FlinkRunner", f"--job_endpoint={gone}"))
    check_options(["--runner=FlinkRunner", f"--job_endpoint={listening}"])  # needs neither Java nor a jar


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runner=DataflowRunner"], "DataflowRunner is not supported"),
        (["--runner=PrismRunner"], "PrismRunner is not supported"),
        (["--direct_running_mode=multi_threading"], "loses elements"),
        (["--direct_running_mode=multi_processing"], "hangs"),
        (["--runner=SparkRunner", "--environment_cache_millis=600000"], "dead worker"),
        (["--runner=FlinkRunner", "--load_balance_bundles=true"], "hung"),
        (["--runner=FlinkRunner", "--flink_job_server_jar=/nowhere/x.jar"], "no such file"),
        (["--runner=FlinkRunner", "--environment_type=PROCESS", "--environment_config=/bin/x"], "no JSON"),
    ],
)
def test_what_loses_data_or_hangs_is_refused(arguments: list[str], said: str) -> None:
    assert said in str(refused(*arguments))


def test_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "needs Java" in str(refused("--runner=FlinkRunner"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--s3_secret_access_key=hush"],
        ["--s3_access_key_id=hush"],
        [
            "--runner=FlinkRunner",
            "--environment_type=PROCESS",
            '--environment_config={"command": "x", "env": {"AWS_SECRET_ACCESS_KEY": "hush"}}',
        ],
    ],
)
def test_a_credential_among_the_options_is_refused_and_not_repeated(arguments: list[str]) -> None:
    error = refused(*arguments)
    assert "hush" not in f"{error}{error.remedy}"


# What a worker tells.


def test_what_a_worker_raised_comes_back_through_the_engines_text() -> None:
    with pytest.raises(RuntimeError) as raised, telling_why():
        raise SifBatchError('the "disk" is full: /x', remedy="free it")
    text = f"java.lang.RuntimeException: Error received from SDK harness: {raised.value} [while running"
    for carried in (text, text.replace('"', '\\"')):
        told = as_told(RuntimeError(f"Pipeline job-1 failed in state FAILED: {carried}"))
        assert isinstance(told, SifBatchError) and told.remedy == "free it" and "is full: /x" in str(told)


def test_what_an_engine_says_itself_is_a_line() -> None:
    text = "Pipeline job-1 failed in state FAILED: java.lang.IllegalStateException: lost\n\tat org.apache.Some.thing\n"
    told = as_told(RuntimeError(text))
    assert isinstance(told, SifBatchError) and "lost" in str(told) and "at org" not in str(told) and told.remedy

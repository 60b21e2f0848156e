"""Engines: what the command line of each must say, checked before anything starts, and the job server between.

Beam's Flink and Spark runners hand a pipeline to a job server (Java), which runs it on a cluster; there each worker is
a Python process. How that process comes to be is the environment: LOOPBACK is this very process, PROCESS a command on
each node, EXTERNAL a pool that runs there, DOCKER a container.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from sif_batch.errors import SifBatchError

FLINK_LOCAL = ("[local]", "[auto]")
SPARK_LOCAL = re.compile(r"^local(\[.+\])?$")
CREDENTIAL = re.compile(r"secret|password|token|access_key|account_key", re.IGNORECASE)
WORKER = "sif-batch-worker"
DOCS = "docs/engines.md"
CREDENTIALS = f"see Credentials, {DOCS}"
ANSWER_S = 10.0

OPTIONS = (
    "runner",
    "direct_running_mode",
    "job_endpoint",
    "environment_type",
    "environment_config",
    "environment_cache_millis",
    "parallelism",
    "load_balance_bundles",
    "flink_master",
    "flink_job_server_jar",
    "spark_master_url",
    "spark_job_server_jar",
)


def check_options(arguments: Sequence[str]) -> list[str]:
    """Beam's options as given after `--`, made complete and safe for their engine.

    Raises SifBatchError for what is known to lose data, to hang, or to need what was not asked for.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise SifBatchError("Beam is not installed, only the reader is", remedy="install 'sif-batch[batch]'")
    if told := next((a.partition("=")[0] for a in arguments if CREDENTIAL.search(a.partition("=")[0])), None):
        raise SifBatchError(
            f"{told} would show in the engine's pages and in run.json", remedy=f"see Credentials, {DOCS}"
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in OPTIONS:
        parser.add_argument(f"--{name}")
    try:
        known, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise SifBatchError(f"{error}", remedy="Beam's options look like --name=value") from error
    given = {name: value for name, value in vars(known).items() if value is not None}
    runner = given.setdefault("runner", "FnApiRunner")
    if runner not in ENGINES:
        raise SifBatchError(
            f"--runner={runner} is not supported", remedy=f"use one of {', '.join(ENGINES)}; see {DOCS}"
        )
    ENGINES[runner](given)
    return [*others, *(f"--{name}={value}" for name, value in given.items())]


def in_this_process(arguments: Sequence[str]) -> bool:
    """Whether the work of these (checked) options is done by this process and its children, not on a cluster."""
    return "--runner=FnApiRunner" in arguments or "--environment_type=LOOPBACK" in arguments


def check_direct(given: dict[str, str]) -> None:
    """DirectRunner is a switch that may download Prism: it is run as FnApiRunner."""
    mode = given.pop("direct_running_mode", "in_memory")
    if mode == "multi_threading":
        raise SifBatchError(
            "--direct_running_mode=multi_threading loses elements in Beam 2.77",
            remedy="leave it out: images are spread over --workers threads inside each shard",
        )
    if mode != "in_memory":
        raise SifBatchError(
            f"--direct_running_mode={mode} hangs for ever when a worker is killed",
            remedy="leave it out: each shard already runs in a child process that is watched",
        )
    given["runner"] = "FnApiRunner"


def check_flink(given: dict[str, str]) -> None:
    master = given.setdefault("flink_master", "[local]")
    check_environment(given, master in FLINK_LOCAL)
    if given.get("load_balance_bundles"):
        raise SifBatchError(
            "--load_balance_bundles hung with no shard done", remedy="leave it out: Flink spreads shards"
        )
    check_server(given, "flink_job_server_jar")
    if master not in FLINK_LOCAL:
        slots = flink_slots(master)
        if int(given.setdefault("parallelism", str(slots))) > slots:
            raise SifBatchError(
                f"--parallelism={given['parallelism']}, and the cluster at {master} has {slots} slots",
                remedy=f"leave it out, or give at most {slots}",
            )


def flink_slots(master: str) -> int:
    """How many task slots the cluster has. Raises SifBatchError if it has none, or does not answer."""
    url = master if "://" in master else f"http://{master}"
    try:
        with urllib.request.urlopen(f"{url}/overview", timeout=ANSWER_S) as answer:
            slots = int(json.load(answer)["slots-total"])
    except (OSError, ValueError, KeyError) as error:
        raise SifBatchError(
            f"--flink_master={master}: no Flink cluster answers there ({getattr(error, 'reason', error)})",
            remedy="give the host:port of its web page (rest.port), and see to the cluster",
        ) from error
    if not slots:
        raise SifBatchError(f"the Flink cluster at {master} has no task slots", remedy="start its task managers")
    return slots


def check_spark(given: dict[str, str]) -> None:
    master = given.setdefault("spark_master_url", "local[*]")
    check_environment(given, bool(SPARK_LOCAL.match(master)))
    if int(given.get("environment_cache_millis", "0")):
        raise SifBatchError(
            "--environment_cache_millis: on Spark an executor would keep a dead worker and fail all its retries on it",
            remedy="leave it out",
        )
    check_server(given, "spark_job_server_jar")
    if master.startswith("spark://"):
        hosts = master.removeprefix("spark://").split(",")
        if not any(answers(host) for host in hosts):
            raise SifBatchError(
                f"--spark_master_url={master}: nothing answers there", remedy="see to the Spark master, or to the URL"
            )


def check_environment(given: dict[str, str], local: bool) -> None:
    """Decide what a worker is, and refuse Beam's default on a cluster, Docker, where nobody asked for it."""
    kind = given.get("environment_type")
    if kind is None and local:
        given["environment_type"] = "LOOPBACK"
    elif kind is None:
        raise SifBatchError(
            f"--runner={given['runner']} on a cluster starts Python workers in Docker containers unless told otherwise",
            remedy=f"add --environment_type=PROCESS where sif-batch is installed on every node ({DOCS}), or "
            "--environment_type=DOCKER --environment_config=IMAGE with an image of yours that has it",
        )
    elif kind == "DOCKER" and "environment_config" not in given:
        raise SifBatchError(
            "--environment_type=DOCKER takes Beam's own image, which has no sif-batch",
            remedy="add --environment_config=IMAGE with an image of yours that has it",
        )
    elif kind == "PROCESS":
        config = given.setdefault("environment_config", json.dumps({"command": worker_command()}))
        try:
            env = json.loads(config).get("env", {})
        except (ValueError, AttributeError) as error:
            raise SifBatchError(
                f"--environment_config={config} is no JSON object ({error})",
                remedy=f'give {{"command": "/path/on/the/nodes/{WORKER}"}}, or leave it out',
            ) from error
        if any(CREDENTIAL.search(name) for name in env):
            raise SifBatchError(
                "--environment_config holds a credential, which would show in the engine's pages and in run.json",
                remedy=CREDENTIALS,
            )


def worker_command() -> str:
    """Where `sif-batch-worker` is in this installation; nodes have it at the same place, or are told another."""
    beside = Path(sys.executable).with_name(WORKER)
    return str(beside) if beside.exists() else shutil.which(WORKER) or WORKER


def check_server(given: dict[str, str], option: str) -> None:
    """What it takes to start the job server: Java, and its jar, which Beam downloads where none is named."""
    if endpoint := given.get("job_endpoint"):
        if not answers(endpoint):
            raise SifBatchError(
                f"--job_endpoint={endpoint}: no job server answers there", remedy="start it, or leave it out"
            )
        return
    jar = given.get(option)
    if jar and "://" not in jar and not os.path.isfile(jar):
        raise SifBatchError(f"--{option}={jar}: there is no such file", remedy=f"{DOCS} says where to get it")
    java = Path(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else shutil.which("java")
    if java is None or not Path(java).exists():
        raise SifBatchError(
            f"--runner={given['runner']} needs Java 11 or 17 to run Beam's job server, and there is none",
            remedy="install it, or set JAVA_HOME; or give the --job_endpoint of a job server that runs elsewhere",
        )


def answers(endpoint: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), ANSWER_S):
            return True
    except (OSError, ValueError):
        return False


ENGINES: dict[str, Callable[[dict[str, str]], None]] = {
    "FnApiRunner": check_direct,
    "DirectRunner": check_direct,
    "FlinkRunner": check_flink,
    "SparkRunner": check_spark,
}


_servers: dict[str, tuple[Any, str]] = {}  # by runner: the job server and its endpoint


def serve_jobs(arguments: Sequence[str]) -> list[str]:
    """Start the engine's job server, once a process, and say where it is. Beam's own would be started for each job."""
    from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer
    from apache_beam.runners.portability.spark_runner import SparkJarJobServer

    runner = next(a.partition("=")[2] for a in arguments if a.startswith("--runner="))
    kinds = {"FlinkRunner": FlinkJarJobServer, "SparkRunner": SparkJarJobServer}
    if runner not in kinds or any(a.startswith("--job_endpoint=") for a in arguments):
        return []
    if runner not in _servers:
        options = PipelineOptions(list(arguments))
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        options.view_as(JobServerOptions).job_port = port
        server = kinds[runner](options)
        try:
            server.start()
        except (URLError, RuntimeError, ValueError, OSError) as error:
            with contextlib.suppress(Exception):
                server.stop()
            raise SifBatchError(
                f"the job server of {runner} could not be started ({' '.join(str(error).split())[:300]})",
                remedy=f"--{runner.removesuffix('Runner').lower()}_job_server_jar=FILE; {DOCS} says where to get it",
            ) from error
        _servers[runner] = server, f"localhost:{port}"
    return [f"--job_endpoint={_servers[runner][1]}"]


def stop_serving() -> None:
    """Stop the job servers that this process started."""
    while _servers:
        with contextlib.suppress(Exception):
            _servers.popitem()[1][0].stop()

"""Real clusters on this machine, as context managers: what they start they stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.engines import fetch

START_S = 480.0  # on a busy machine
STOP_S = 10.0
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.create_connection((HOST, port), 1):
        return True


class Failed(RuntimeError):
    """Something that was started here did not come up; the message says what it said last."""


@dataclass
class Cluster:
    """A running cluster. master: as the command line takes it; folder: of its logs and scratch files; workers: task
    managers, or Spark's workers."""

    master: str
    web: str
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, path: str) -> Any:
        """What the web page's JSON says."""
        with urllib.request.urlopen(f"{self.web}{path}", timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def flink_cluster(
    folder: Path, task_managers: int = 2, slots: int = 1, restarts: int = 10, delay_s: int = 5
) -> Iterator[Cluster]:
    """A Flink standalone cluster. restarts: of a job, 0: it fails at once."""
    home = fetch.flink_home()
    rpc, rest = free_port(), free_port()
    settings = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": HOST,
        "jobmanager.memory.process.size": "1g",
        "rest.port": rest,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.memory.process.size": "1400m",
        "taskmanager.memory.managed.size": "128m",
        "taskmanager.numberOfTaskSlots": slots,
        "cluster.evenly-spread-out-slots": "true",
        "io.tmp.dirs": str(folder),
        "heartbeat.timeout": 20_000,
    }
    if restarts:
        settings |= {
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": restarts,
            "restart-strategy.fixed-delay.delay": f"{delay_s} s",
        }
    conf, logs = folder / "flink-conf", folder / "flink-logs"
    conf.mkdir(parents=True)
    logs.mkdir()
    given = [f"{name}: {value}" for name, value in settings.items()]
    opens = [line for line in (home / "conf/config.yaml").read_text().splitlines() if not line.startswith("#")]
    (conf / "config.yaml").write_text("\n".join([*_java_options(opens), *given]) + "\n")
    for file in (home / "conf").iterdir():
        if file.suffix != ".yaml":
            (conf / file.name).write_bytes(file.read_bytes())
    env = {
        "FLINK_CONF_DIR": str(conf),
        "FLINK_LOG_DIR": str(logs),
        "FLINK_PID_DIR": str(folder),
        "FLINK_HOME": str(home),
    }
    cluster = Cluster(f"{HOST}:{rest}", f"http://{HOST}:{rest}", folder)
    with contextlib.ExitStack() as running:
        command = ["bash", str(home / "bin/jobmanager.sh"), "start-foreground"]
        manager = running.enter_context(process(command, logs / "jm", env))
        for number in range(task_managers):
            command = ["bash", str(home / "bin/taskmanager.sh"), "start-foreground"]
            cluster.workers.append(running.enter_context(process(command, logs / f"tm{number}", env)))

        def all_there() -> bool:
            return bool(cluster.ask("/overview")["taskmanagers"] == task_managers)

        wait_for(all_there, f"Flink of {task_managers} task managers", logs, [manager, *cluster.workers])
        yield cluster


def _java_options(lines: list[str]) -> list[str]:
    """The section of Flink's own configuration that opens Java's modules."""
    start = next(i for i, line in enumerate(lines) if line.startswith("env:"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    return lines[start:end]


@contextlib.contextmanager
def spark_cluster(folder: Path, workers: int = 2, cores: int = 1) -> Iterator[Cluster]:
    """A Spark standalone cluster: a master, and workers of `cores` each."""
    home = fetch.spark_home()
    port, web = free_port(), free_port()
    logs = folder / "spark-logs"
    logs.mkdir(parents=True)
    env = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": HOST, "SPARK_LOCAL_DIRS": str(folder)}
    spark = ["bash", str(home / "bin/spark-class"), "org.apache.spark.deploy"]
    cluster = Cluster(f"spark://{HOST}:{port}", f"http://{HOST}:{web}", folder)
    with contextlib.ExitStack() as running:
        master = [
            *spark[:2],
            f"{spark[2]}.master.Master",
            "--host",
            HOST,
            "--port",
            str(port),
            "--webui-port",
            str(web),
        ]
        started = running.enter_context(process(master, logs / "master", env))
        for number in range(workers):
            command = [*spark[:2], f"{spark[2]}.worker.Worker", "--host", HOST, "-c", str(cores), "-m", "2g"]
            command += ["--webui-port", str(free_port()), "--work-dir", str(folder / f"work{number}"), cluster.master]
            cluster.workers.append(running.enter_context(process(command, logs / f"worker{number}", env)))

        def all_there() -> bool:
            return bool(cluster.ask("/json/")["aliveworkers"] == workers)

        wait_for(all_there, f"Spark of {workers} workers", logs, [started, *cluster.workers])
        yield cluster


@contextlib.contextmanager
def process(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, all of which ends with the block."""
    with open(f"{log}.log", "wb") as out:
        started = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | env, start_new_session=True
        )
    try:
        yield started
    finally:
        end_group(started)


def end_group(started: subprocess.Popen[bytes]) -> None:
    """End a process and all that is left of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(STOP_S)
    started.wait()


def wait_for(
    true: Callable[[], bool],
    what: str,
    logs: Path,
    started: Sequence[subprocess.Popen[bytes]] = (),
    timeout_s: float = START_S,
) -> None:
    """Wait until it is true; what it raises meanwhile is a no. Raises Failed when one of these processes has ended."""
    deadline, last = time.monotonic() + timeout_s, "it is not there yet"
    while time.monotonic() < deadline:
        try:
            if true():
                return
            last = "it answers, and is not complete"
        except (OSError, ValueError, KeyError) as error:
            last = str(error)
        if ended := [process for process in started if process.poll() is not None]:
            raise Failed(f"{what}: a process ended with code {ended[0].returncode}; {_last_words(logs)}")
        time.sleep(0.2)
    raise Failed(f"{what} did not come up in {timeout_s:.0f} s ({last}); {_last_words(logs)}")


def _last_words(logs: Path) -> str:
    """The last line of each log."""
    said = {
        file.name: file.read_text(errors="replace").strip().splitlines()[-1:] for file in sorted(logs.glob("*.log"))
    }
    return "; ".join(f"{name}: {line[0][:200]}" for name, line in said.items() if line) or f"nothing in {logs}"

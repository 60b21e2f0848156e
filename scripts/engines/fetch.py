"""Fetch what the engine tests run on: python -m scripts.engines.fetch [flink spark s3 azure]

Everything lies in one folder, SIF_ENGINES_CACHE (~/.cache/sif-batch-engines). Beam's official job servers are single
jars that some mirrors do not carry, so they are assembled from their parts; SIF_FLINK_JOB_SERVER_JAR and
SIF_SPARK_JOB_SERVER_JAR name others.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("SIF_ENGINES_CACHE", "~/.cache/sif-batch-engines")).expanduser()
JOB_SERVERS = Path(__file__).with_name("jobserver")
FLINK = "1.19.3"
SPARK = "3.5.0"
S3PROXY = "4.1.0"
AZURITE = "3.35.0"
BEAM_JAVA = "2.70.0"  # of the parts, with a job service of 2.65.0: the newest whose jars all mirrors tried carry
FETCH_S = 600


class Unavailable(RuntimeError):
    """It cannot be had here; the message says why."""


def flink_jar() -> Path:
    """A Beam job server for Flink 1.19."""
    return _given("SIF_FLINK_JOB_SERVER_JAR") or _once(f"flink-job-server-{BEAM_JAVA}.jar", _assemble("flink"))


def spark_jar() -> Path:
    """A Beam job server for Spark 3.5, with Spark inside."""
    return _given("SIF_SPARK_JOB_SERVER_JAR") or _once(f"spark-job-server-{BEAM_JAVA}.jar", _assemble("spark"))


def flink_home() -> Path:
    """Flink's own distribution, as its Python package carries it."""
    packages = (f"apache-flink=={FLINK}", f"apache-flink-libraries=={FLINK}")
    return _once(f"flink-{FLINK}", _install(*packages)) / "pyflink"


def spark_home() -> Path:
    """Spark's own distribution, as its Python package carries it."""
    return _once(f"spark-{SPARK}", _install(f"pyspark=={SPARK}")) / "pyspark"


def s3proxy_jar() -> Path:
    """A server that speaks S3 and keeps its objects in a folder."""

    def make(target: Path) -> None:
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
        artifact = f"org.gaul:s3proxy:{S3PROXY}:jar:jar-with-dependencies"
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _maven(plugin, f"-Dartifact={artifact}", f"-DoutputDirectory={folder}", "-Dtransitive=false", at=folder)
            next(Path(folder).glob("*.jar")).rename(target)

    return _once(f"s3proxy-{S3PROXY}.jar", make)


def azurite() -> Path:
    """The script of Microsoft's emulator of Azure's blobs."""

    def make(target: Path) -> None:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Unavailable("Node.js is not installed (apt-get install nodejs npm)")
        target.mkdir()
        npm = ["npm", "install", "--prefix", str(target), "--no-audit", "--no-fund", "--loglevel=error"]
        _run([*npm, f"azurite@{AZURITE}"], str(CACHE))

    return _once(f"azurite-{AZURITE}", make) / "node_modules/azurite/dist/src/blob/main.js"


def _given(variable: str) -> Path | None:
    path = os.environ.get(variable)
    if path and not Path(path).is_file():
        raise Unavailable(f"{variable}={path}: there is no such file")
    return Path(path) if path else None


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file or folder; made whole, or not at all, by one process at a time."""
    target = CACHE / name
    if target.exists():  # nobody waits for another part that is being made
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / ".lock"):
        if not target.exists():
            partial = CACHE / f".partial-{name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
            make(partial)
            partial.rename(target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _assemble(engine: str) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            project = Path(folder)
            for pom in JOB_SERVERS.glob("*.xml"):
                shutil.copy(pom, project)
            _maven("-f", f"{engine}.xml", "package", at=folder)
            (project / "target" / f"{engine}-job-server-1.jar").rename(target)

    return make


def _maven(*arguments: str, at: str) -> None:
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise Unavailable("Maven and Java are not installed (apt-get install maven openjdk-17-jre-headless)")
    _run(["mvn", "-B", "-q", "-ntp", f"-Dmaven.repo.local={CACHE / 'm2'}", *arguments], at)


def _install(*packages: str) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        uv = Path(sys.executable).with_name("uv")
        pip = [str(uv), "pip"] if uv.exists() else [sys.executable, "-m", "pip"]
        _run([*pip, "install", "--quiet", "--no-deps", "--target", str(target), *packages], str(CACHE))

    return make


def _run(command: list[str], at: str) -> None:
    try:
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} was not done after {FETCH_S} s") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Unavailable(f"{' '.join(command[:2])} failed: {(lines or ['no output'])[0][:300]}")


PARTS: dict[str, tuple[Callable[[], Path], ...]] = {
    "s3": (s3proxy_jar,),
    "azure": (azurite,),
    "flink": (flink_jar, flink_home),
    "spark": (spark_jar, spark_home),
}


def main(names: list[str]) -> None:
    """Fetch all, and say what cannot be had; the tests that need it are skipped."""
    for name in names or PARTS:
        for part in PARTS[name]:
            try:
                print(part())
            except Unavailable as reason:
                print(f"{part.__name__}: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])

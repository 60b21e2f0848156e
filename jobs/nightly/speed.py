"""Where embedding's time went, and what would help most."""

from dataclasses import dataclass, field
from typing import Any

from sif_batch.machine.arithmetic import computes_int8
from sif_batch.machine.devices import Lane, usable_cores

ADVICE = {  # by what limits embedding
    "read": "faster storage, or more --workers to wait for it",
    "decode": "more cores, or smaller images: photos far above the network's input are decoded for nothing",
    "network": "more cores, or a smaller --encoder",
    "write": "faster storage for ROOT, or a larger --shard-images",
    "waiting": "a larger --shard-images, so that threads wait less often for the last image of a shard",
}


@dataclass
class Speed:
    """How fast embedding was. device: what was chosen, and why; lanes: of the plan that had most; first_image_s: from
    the process's start; working_s: from there to the last part; thread_s: what the threads did, seconds by stage."""

    device: str = ""
    lanes: list[Lane] = field(default_factory=list)
    images: int = 0
    first_image_s: float | None = None
    working_s: float = 0.0
    thread_s: dict[str, float] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        return sum(lane.threads for lane in self.lanes)


def add_counters(speed: Speed, counters: dict[str, int]) -> None:
    speed.images += counters.pop("images", 0)
    for key, value in counters.items():
        if key.endswith("_ms"):
            stage = key.removesuffix("_ms")
            speed.thread_s[stage] = speed.thread_s.get(stage, 0.0) + value / 1000
        elif key.startswith("shards of "):
            worker = key.removeprefix("shards of ")
            speed.shards[worker] = speed.shards.get(worker, 0) + value


def embedding_figures(speed: Speed) -> dict[str, Any]:
    """Images per second, and the seconds of the threads by stage; waiting is what is left of their time."""
    spent = {stage: round(seconds, 3) for stage, seconds in speed.thread_s.items()}
    spent["waiting"] = round(max(0.0, speed.threads * speed.working_s - sum(speed.thread_s.values())), 3)
    return {
        "images_per_s": round(speed.images / speed.working_s, 1) if speed.working_s else None,
        "first_image_s": speed.first_image_s and round(speed.first_image_s, 2),
        "working_s": round(speed.working_s, 3),
        "device": speed.device,
        "processes": len(speed.lanes),
        "threads": speed.threads,
        "thread_s": spent,
        "shards_by_worker": speed.shards,
    }


def bottleneck(speed: Speed | None, int8: bool) -> str | None:
    """Where the threads' time went, most first, and the one change that would help most; None: nothing was embedded."""
    if speed is None:
        return None
    spent = embedding_figures(speed)["thread_s"]
    total = sum(spent.values())
    if not total:
        return None
    shares = sorted(((seconds / total, stage) for stage, seconds in spent.items()), reverse=True)
    limit = shares[0][1]
    advice = ADVICE[limit]
    if limit == "network" and not int8 and computes_int8():
        advice = "--precision int8, at about half the network's time"
    if speed.lanes and speed.threads < usable_cores() and limit in ("decode", "network"):
        advice = f"--workers {usable_cores()}, as many as there are cores"
    split = ", ".join(f"{stage} {share:.0%}" for share, stage in shares[1:] if share >= 0.005)
    return f"{limit}: {shares[0][0]:.0%} of core time ({split}); most would help: {advice}"

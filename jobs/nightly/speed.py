"""Where embedding's time went, and what would help most."""

from typing import Any

from sif_batch.jobs.nightly.embed_stage import Speed
from sif_batch.machine.arithmetic import computes_int8
from sif_batch.machine.devices import usable_cores

ADVICE = {  # by what limits embedding
    "read": "faster storage, or more --workers to wait for it",
    "decode": "more cores, or smaller images: photos far above the network's input are decoded for nothing",
    "network": "more cores, or a smaller --encoder",
    "write": "faster storage for ROOT, or a larger --shard-images",
    "waiting": "a larger --shard-images, so that threads wait less often for the last image of a shard",
}


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

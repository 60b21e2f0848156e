"""A shard embedded in a child process that is watched: a dead, silent or overdue child costs an image, not the run."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from sif_batch.embedding.threads import ShardStats
from sif_batch.errors import SifBatchError
from sif_batch.machine.child import STALL_S, Child, ChildDied
from sif_batch.machine.devices import Lane
from sif_batch.machine.memory import resident_bytes

STRIKES = 2  # an image that ends the child alone, this often, is the cause
SHARD_TRIES = 2  # the whole shard, before its images are suspected
IMAGE_TIMEOUT_S = 120.0

Progress = Callable[[int, int], None]  # images done and images failed since the last call


def embed_in_child(
    child: Child,
    root: str,
    plan: str,
    shard: int,
    lane: Lane,
    on_progress: Progress,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
    stall_s: float = STALL_S,
) -> ShardStats:
    """Embed one shard in the child process, whatever happens to it.

    An image that is read and decoded for longer than `image_timeout_s` ends the child and is a failed row. A child
    that dies, stalls or takes more memory than its lane may costs a second try of the whole shard; after that the
    images in work at each death are tried alone, and one that ends the child alone twice becomes a failed row. A
    container that ends it while none is in work is read up to there, and is a failed row itself.
    """
    strikes: Counter[int] = Counter()
    in_work: set[int] = set()
    since: dict[int, float] = {}  # when reading an image began
    lost: dict[int, str] = {}
    barren = 0
    broken: tuple[int, str] | None = None
    for tries in itertools.count():
        done = failed = 0
        hungry = False
        read: int | None = None  # of a container, up to which ordinal

        def on_report(report: tuple[str, Any]) -> None:
            nonlocal done, failed, read
            kind, value = report
            if kind == "start":
                on_progress(0, 0)  # work has begun
                image, before = value
                since.pop(before, None)
                if image not in lost:
                    in_work.add(image)
                    since[image] = time.monotonic()
            elif kind == "decoded":
                since.pop(value, None)
            elif kind == "read":
                read = value
            else:
                in_work.difference_update(value[0])
                done, failed = done + len(value[0]), failed + value[1]
                on_progress(len(value[0]), value[1])

        def overdue() -> str | None:
            nonlocal hungry
            if why := too_hungry(child, lane):
                hungry = True
                return why
            if not since or time.monotonic() - min(since.values()) <= image_timeout_s:
                return None
            return f"an image took more than {image_timeout_s:g} s"

        try:
            stats: ShardStats = child.call(
                "sif_batch.embedding.shard:embed_shard",
                on_report,
                stall_s,
                overdue,
                root=root,
                plan=plan,
                shard=shard,
                lane=lane,
                lost=lost,
                broken=broken,
                suspects=sorted(strikes.keys() - lost.keys()) if tries >= SHARD_TRIES else [],
            )
            return stats
        except ChildDied as death:
            on_progress(-done, -failed)
            barren = 0 if in_work else barren + 1
            kind = "timeout" if death.overdue and not hungry else "crashed"
            if barren > SHARD_TRIES and read is not None and broken is None:
                barren, broken = 0, (read, f"{kind}:{death} while it was read")
            if barren > SHARD_TRIES:
                raise SifBatchError(
                    f"shard {shard} of plan {plan}: {death}, {barren} times with no image in work",
                    remedy="free memory or lower --workers; the same command goes on where this one stopped",
                ) from death
            late = [image for image, start in since.items() if time.monotonic() - start > image_timeout_s]
            for image in late if death.overdue else ():
                lost[image] = f"timeout:reading and decoding it took more than {image_timeout_s:g} s"
            alone = len(in_work) == 1 and tries >= SHARD_TRIES
            for image in () if lost.keys() & late else in_work:
                strikes[image] += alone
                if strikes[image] >= STRIKES:
                    lost[image] = f"{kind}:{death}"
            in_work.clear()
            since.clear()
    raise AssertionError("unreachable")


def too_hungry(child: Child, lane: Lane) -> str | None:
    """Why the child takes more memory than its lane may; None: it does not, or the lane has no limit."""
    taken = resident_bytes(child.pid) if lane.max_bytes is not None else 0
    if lane.max_bytes is None or taken <= lane.max_bytes:
        return None
    return f"it took {taken / 2**20:.0f} MB of memory, {lane.max_bytes / 2**20:.0f} are its share"

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sif_batch.errors import BusyError
from sif_batch.storage import lease
from sif_batch.storage.lease import NAME, TTL_S, Lease, check_free, holding, release_all
from sif_batch.storage.store import Store

HOLD = """
import sys
from sif_batch.storage.lease import Lease
from sif_batch.storage.store import Store
Lease(Store(sys.argv[1]), "run").take()
print("held", flush=True)
sys.stdin.read()
"""


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def of_another_machine(store: Store) -> None:
    """Make the lease look as if another machine held it."""
    record = json.loads(store.read(NAME))
    record["holder"]["machine"] = "elsewhere"
    store.replace(NAME, json.dumps(record).encode())


def test_a_lease_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    check_free(store)
    with holding(store, "run"):
        with pytest.raises(BusyError, match=r"is held by sif-batch run \(process \d+ on .*\) since 20") as raised:
            Lease(store, "gc").take()
        assert raised.value.exit_code == 4 and "its lease ends" in raised.value.remedy
        with pytest.raises(BusyError):
            check_free(store)
    check_free(store)
    with holding(store, "gc") as again:
        again.check()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {other.pid}"):
            Lease(store, "run").take()
        other.kill()
        other.wait(900)
        said: list[str] = []
        with holding(store, "run", said.append):
            assert len(said) == 1 and f"process {other.pid}" in said[0]


def test_of_another_machine_a_lease_ends_with_its_time(tmp_path: Path) -> None:
    store, clock = Store(str(tmp_path)), Clock()
    old, new = Lease(store, "run", clock), Lease(store, "run", clock)
    assert old.take() is None
    of_another_machine(store)
    clock.now += TTL_S - 1
    with pytest.raises(BusyError):
        new.take()
    clock.now += 2
    dead = new.take()
    assert dead is not None and dead["machine"] == "elsewhere"


def test_a_holder_that_wakes_up_late_finds_its_lease_gone_and_leaves_the_new_one_alone(tmp_path: Path) -> None:
    store, clock = Store(str(tmp_path)), Clock()
    old, new = Lease(store, "run", clock), Lease(store, "compact", clock)
    old.take()
    old.check()
    clock.now += TTL_S + 1
    new.take()
    written = store.read(NAME)
    with pytest.raises(BusyError, match="held by sif-batch compact"):
        old.check()
    old.renew()
    old.release()
    assert store.read(NAME) == written
    new.check()


def test_renewing_extends_the_lease(tmp_path: Path) -> None:
    store, clock = Store(str(tmp_path)), Clock()
    holder = Lease(store, "run", clock)
    holder.take()
    for _ in range(5):
        clock.now += TTL_S - 1
        holder.renew()
        with pytest.raises(BusyError):
            Lease(store, "run", clock).take()
    since, renewed = (json.loads(store.read(NAME))[name] for name in ("since", "renewed"))
    assert since < renewed


def test_of_many_that_take_over_a_dead_lease_one_wins(tmp_path: Path) -> None:
    store, clock = Store(str(tmp_path)), Clock()
    for _ in range(10):
        Lease(store, "run", clock).take()
        clock.now += TTL_S + 1
        barrier, won = threading.Barrier(8), []

        def take(barrier: threading.Barrier = barrier, won: list[Lease] = won) -> None:
            mine = Lease(store, "run", clock)
            barrier.wait()
            try:
                mine.take()
            except BusyError:
                return
            won.append(mine)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].check()
        clock.now += TTL_S + 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"null", b'{"holder": 3, "since": 1}', b"\xff"])
def test_a_damaged_lease_holds_nobody_up(tmp_path: Path, damage: bytes) -> None:
    store = Store(str(tmp_path))
    store.create(NAME, damage)
    check_free(store)
    with holding(store, "run") as held:
        held.check()


def test_what_a_process_holds_is_given_back_at_its_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    held = Lease(store, "run")
    held.take()
    held.keep()
    release_all()
    check_free(store)
    assert held not in lease._held


def test_a_signal_while_the_lease_is_renewed_still_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler runs in the main thread, in the midst of whatever that was at."""
    store, swap, given_back = Store(str(tmp_path)), lease.swap, threading.Event()

    def signalled(*arguments: object) -> bool:
        monkeypatch.setattr(lease, "swap", swap)
        os.kill(os.getpid(), signal.SIGUSR1)
        given_back.wait(0.2)  # meanwhile the handler begins, and waits for this to end
        return swap(*arguments)

    def handler(number: int, frame: object) -> None:
        release_all()
        given_back.set()

    def too_late(number: int, frame: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGUSR1, handler), signal.signal(signal.SIGALRM, too_late)
    signal.alarm(30)
    try:
        with holding(store, "run") as held:
            monkeypatch.setattr(lease, "swap", signalled)
            with monkeypatch.context() as seen:
                seen.setattr(lease, "_read", lambda store: b"another")
                held.check()
            assert given_back.is_set() and json.loads(store.read(NAME))["holder"] is None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGUSR1, old[0])
        signal.signal(signal.SIGALRM, old[1])

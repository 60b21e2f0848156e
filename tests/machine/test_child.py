import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY, SUPPORT

from sif_batch.embedding.supervision import too_hungry
from sif_batch.errors import BusyError, SifBatchError
from sif_batch.machine.child import Child, ChildDied
from sif_batch.machine.devices import Lane
from sif_batch.machine.memory import resident_bytes


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    places = [SUPPORT, REPOSITORY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        child = Child()
        yield child
        child.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pid: int, timeout_s: float = 900) -> None:
    deadline = time.monotonic() + timeout_s
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def test_call_returns_the_result_and_reports_on_the_way(child: Child) -> None:
    reports: list[str] = []
    assert child.call("child_work:double", reports.append, number=21) == 42
    assert reports == ["half way"]


def test_calls_share_one_process(child: Child) -> None:
    child.call("child_work:double", number=1)
    first = child.pid
    child.call("child_work:double", number=2)
    assert child.pid == first != os.getpid()


def test_an_error_for_a_person_arrives_whole(child: Child) -> None:
    with pytest.raises(BusyError, match="^no such thing$") as caught:
        child.call("child_work:refuse")
    assert (caught.value.remedy, caught.value.exit_code) == ("give another", 4)
    assert child.call("child_work:double", number=1) == 2


def test_an_os_error_arrives_with_its_number_and_file(child: Child, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        child.call("child_work:find_no_file", path=str(tmp_path / "gone"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "gone"))


def test_any_other_error_arrives_as_its_traceback(child: Child) -> None:
    with pytest.raises(RuntimeError, match="in divide_by_zero(.|\n)*ZeroDivisionError: division by zero"):
        child.call("child_work:divide_by_zero")


def test_an_unknown_function_is_an_error_of_the_call(child: Child) -> None:
    with pytest.raises(RuntimeError, match="no attribute 'nothing'"):
        child.call("child_work:nothing")


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("send_signal", {"number": signal.SIGKILL}, "the worker process ended (SIGKILL)"),
        ("send_signal", {"number": signal.SIGTERM}, "the worker process ended (SIGTERM)"),
        ("exit_with", {"code": 7}, "the worker process ended (exit code 7): something was wrong"),
    ],
)
def test_a_death_says_how_and_the_next_call_works(
    child: Child, function: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChildDied) as caught:
        child.call(f"child_work:{function}", **arguments)
    assert str(caught.value) == message
    assert not caught.value.overdue
    assert child.pid is None
    assert child.call("child_work:double", number=3) == 6


def test_kill_9_from_outside_is_noticed_and_not_taken_for_a_stall(child: Child) -> None:
    with pytest.raises(ChildDied, match="SIGKILL") as caught:
        child.call("child_work:hang", lambda pid: os.kill(pid, signal.SIGKILL))
    assert not caught.value.overdue


def test_a_child_killed_between_two_calls_is_started_again(child: Child) -> None:
    child.call("child_work:double", number=1)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # all its threads have ended, and it is not reaped yet
    assert child.call("child_work:double", number=2) == 4
    assert child.pid != first


def test_a_stopped_child_is_overdue_and_ended(child: Child) -> None:
    child.call("child_work:double", number=1)
    stopped = child.pid
    assert stopped is not None
    with pytest.raises(ChildDied, match="reported nothing for 1 s") as caught:
        child.call("child_work:send_signal", stall_s=1, number=signal.SIGSTOP)
    assert caught.value.overdue
    assert not is_running(stopped)


class Clock:
    """`time` for the parent, which a test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_each_report_resets_the_clock(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("sif_batch.machine.child.time", clock)
    monkeypatch.setattr("sif_batch.machine.child.POLL_S", 0.01)

    def wait_100_s(report: int) -> None:
        clock.now += 100

    assert child.call("child_work:count", wait_100_s, stall_s=150, reports=5, every_s=0.1) == "counted"
    assert clock.now == 500


def test_an_error_while_reporting_ends_the_child_and_is_raised(child: Child) -> None:
    pids: list[int] = []

    def fail(pid: int) -> None:
        pids.append(pid)
        raise LookupError("no place to show it")

    with pytest.raises(LookupError, match="no place to show it"):
        child.call("child_work:hang", fail)
    assert not is_running(pids[0])
    assert child.call("child_work:double", number=1) == 2


def test_close_leaves_no_process_and_may_be_called_twice(child: Child) -> None:
    child.start()
    pid = child.pid
    assert pid is not None
    assert is_running(pid)
    child.close()
    child.close()
    assert not is_running(pid)
    assert child.pid is None
    assert child.call("child_work:double", number=1) == 2


def test_close_while_a_call_waits_ends_the_call(child: Child) -> None:
    pids: list[int] = []
    errors: list[BaseException] = []
    at_work = threading.Event()

    def note(pid: int) -> None:
        pids.append(pid)
        at_work.set()

    def call() -> None:
        try:
            child.call("child_work:hang", note)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert at_work.wait(900)
    child.close()
    thread.join(900)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert not is_running(pids[0])


def test_call_again_survives_deaths(child: Child, tmp_path: Path) -> None:
    assert child.call_again("child_work:die_until", tries=3, path=str(tmp_path / "calls"), deaths=2) == 3


def test_call_again_gives_up_after_so_many_tries(child: Child, tmp_path: Path) -> None:
    with pytest.raises(SifBatchError, match=r"the worker process ended \(SIGKILL\), 2 times") as caught:
        child.call_again("child_work:die_until", tries=2, path=str(tmp_path / "calls"), deaths=2)
    assert "free memory" in caught.value.remedy
    assert isinstance(caught.value.__cause__, ChildDied)
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_child_that_hangs_ends_with_its_parent(child: Child) -> None:
    call = "Child().call('child_work:hang', lambda pid: print(pid, flush=True))"
    program = f"from sif_batch.machine.child import Child; {call}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_running(pid)
        finally:
            parent.kill()
            parent.wait(900)
    wait_for_end(pid)


def test_a_child_that_takes_more_than_its_share_of_memory_is_ended(child: Child) -> None:
    child.call("child_work:double", number=1)
    lane = Lane("cpu", 1, resident_bytes(child.pid) + 50 * 2**20)
    assert too_hungry(child, lane) is None and too_hungry(child, Lane("cpu", 1)) is None
    with pytest.raises(ChildDied, match="MB of memory, .* are its share") as caught:
        child.call("child_work:hoard", overdue=lambda: too_hungry(child, lane), size=200 * 2**20)
    assert caught.value.overdue

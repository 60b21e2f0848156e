"""The line that says what held a run back."""

from sif_batch.jobs.nightly.speed import Speed, bottleneck, embedding_figures
from sif_batch.machine.devices import Lane, usable_cores


def speed(threads: int = 0, **thread_s: float) -> Speed:
    threads = threads or usable_cores()
    return Speed(
        "cpu", [Lane("cpu", threads)], images=100, first_image_s=1.5, working_s=10 / threads, thread_s=thread_s
    )


def test_what_no_stage_took_is_waiting_and_all_adds_up() -> None:
    figures = embedding_figures(speed(read=1, decode=2, network=6, write=0.5))
    assert figures["thread_s"] == {"read": 1, "decode": 2, "network": 6, "write": 0.5, "waiting": 0.5}
    assert figures["images_per_s"] == round(100 / (10 / usable_cores()), 1)


def test_the_limit_comes_first_with_the_one_change_that_would_help() -> None:
    line = bottleneck(speed(read=0.5, decode=6, network=3, write=0.5), int8=False)
    assert line is not None
    assert line.startswith("decode: 60% of core time (network 30%, ") and "smaller images" in line
    line = bottleneck(speed(network=9, decode=1), int8=True)
    assert line is not None and line.endswith("more cores, or a smaller --encoder")


def test_idle_cores_are_said_before_anything_else() -> None:
    line = bottleneck(Speed("cpu", [Lane("cpu", 0)], 100, 1.0, 10.0, {"network": 9.0}), int8=True)
    assert line is not None and f"--workers {usable_cores()}" in line


def test_a_night_that_embedded_nothing_has_no_bottleneck() -> None:
    assert bottleneck(None, int8=False) is None
    assert bottleneck(Speed(), int8=False) is None

"""Batches made in the background: the same as without, errors and deadlines with their step."""

from __future__ import annotations

import threading
import time

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.data.prefetch import LoadingError, Prefetcher


def _squares(step: int) -> int:
    return step * step


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 2, 16])
def test_order_and_content_are_those_without_it(depth: int, workers: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))  # later ones are ready before earlier ones
        return _squares(step)

    with Prefetcher(make, 3, 40, 10, depth=depth, workers=workers) as stream:
        assert [stream.next() for _ in range(3, 40)] == [_squares(step) for step in range(3, 40)]
        with pytest.raises(StopIteration):
            stream.next()


def test_what_is_there_is_handed_out_without_a_wait() -> None:
    with Prefetcher(_squares, 0, 100, 10, depth=100) as stream:
        while any(thread.is_alive() for thread in stream._threads):
            time.sleep(0.01)
        for _ in range(100):
            stream.next()
        assert stream.waited_seconds < 0.05


def test_it_never_runs_further_ahead_than_its_depth() -> None:
    made: list[int] = []
    with Prefetcher(lambda step: made.append(step) or step, 0, 100, 10, depth=3, workers=2) as stream:
        stream.next()
        time.sleep(0.5)
        assert sorted(made) == [0, 1, 2, 3]  # one handed out, three waiting


@pytest.mark.parametrize(
    ("error", "kind"), [(UserError("no such shard"), UserError), (OSError("disk gone"), LoadingError)]
)
def test_an_error_comes_at_its_own_step_and_names_it(error: Exception, kind: type[Exception]) -> None:
    def make(step: int) -> int:
        if step == 5:
            raise error
        return step

    with Prefetcher(make, 0, 10, 10, describe=lambda step: f"the batch of step {step}") as stream:
        assert [stream.next() for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(kind, match=rf"the batch of step 5: .*{error}") as caught:
            stream.next()
        assert caught.value.__cause__ is error
        with pytest.raises(StopIteration):
            stream.next()


def test_a_wait_beyond_the_deadline_is_an_error_that_names_the_step() -> None:
    release = threading.Event()
    with Prefetcher(lambda step: release.wait(30), 7, 8, 0.2) as stream:
        with pytest.raises(TimeoutError, match=r"no data for step 7 after 0\.2 s"):
            stream.next()
        release.set()


def test_closing_ends_the_threads() -> None:
    stream = Prefetcher(_squares, 0, 10**9, 10, workers=3)
    stream.next()
    stream.close()
    for thread in stream._threads:
        thread.join(5)
        assert not thread.is_alive()

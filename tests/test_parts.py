"""Writing out of reach of signals: a file is never closed under the thread that writes it."""

import threading
import time

import pytest

from featcache.store.parts import out_of_reach_of_signals


def test_a_signal_while_the_thread_starts_waits_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the start of the thread and the wait for it: the file must not be closed under the writer."""
    start = threading.Thread.start
    finished = threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def work() -> None:
        time.sleep(0.2)
        finished.set()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        out_of_reach_of_signals(work)
    assert finished.is_set()


def test_a_signal_before_the_thread_starts_leaves_the_work_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        started.append(thread)
        raise KeyboardInterrupt

    def never() -> None:
        raise AssertionError("the work began after its caller had left")

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        out_of_reach_of_signals(never)
    monkeypatch.undo()
    started[0].start()
    started[0].join()


def test_an_error_of_the_work_is_raised() -> None:
    def fails() -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        out_of_reach_of_signals(fails)

"""Retries end when their result is no longer wanted, or at their limit."""

import threading

import pytest

from workers import retry


def test_retries_stop_when_they_are_interrupted() -> None:
    interrupt = threading.Event()

    def fail() -> None:
        interrupt.set()
        raise OSError

    with pytest.raises(retry.Interrupted):
        retry.with_backoff(fail, OSError, interrupt=interrupt, on_error=lambda _: None)


def test_the_last_error_is_raised_after_the_limit() -> None:
    def fail() -> None:
        raise OSError("no answer")

    with pytest.raises(OSError, match="no answer"):
        retry.with_backoff(
            fail, OSError, interrupt=threading.Event(), limit_seconds=0, on_error=lambda _: None
        )

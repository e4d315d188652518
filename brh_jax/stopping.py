"""SIGTERM, which schedulers send before they take a machine away: training saves and ends, anything else ends at once."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A run was told to stop and has left everything as it must be to go on."""


_requested = False
_training = False


def install() -> None:
    """Handles SIGTERM from here on; does nothing outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handle)


def _handle(signum, frame):
    global _requested
    again, _requested = _requested, True
    if again or not _training:
        raise Stopped("told to stop")


@contextlib.contextmanager
def training():
    """Within it a SIGTERM waits until the loop asks `requested`."""
    global _training
    _training = True
    try:
        yield
    finally:
        _training = False


def requested(step: int) -> bool:
    """Whether to stop after this step: the same answer in every process of a run."""
    if jax.process_count() > 1:
        # jax's coordination service tells all processes of a step that each of them will still reach.
        return multihost_utils.reached_preemption_sync_point(step)
    return _requested


def reset() -> None:
    """Forgets a request."""
    global _requested
    _requested = False

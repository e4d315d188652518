"""SIGTERM, which schedulers send before they take a machine away: training saves and ends, anything else ends at once."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Stopped(BaseException):
    """A run was told to stop and has left everything as it must be to go on. Like KeyboardInterrupt, no handler's business."""


_requested = False
_training = False
_asked = 0


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


def requested() -> bool:
    """Whether to stop after this step: the same answer in every process of a run, all of which ask after every step."""
    global _asked
    _asked += 1
    if jax.process_count() > 1:
        # jax's coordination service tells all processes of a count that each of them will still reach; it must not go back.
        return multihost_utils.reached_preemption_sync_point(_asked)
    return _requested

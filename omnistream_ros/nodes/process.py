# SPDX-License-Identifier: Apache-2.0
"""What every ROS process of this package does around its node: allocator, signals, executor."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
# An orderly end waits for the frame in work; after this long, or at a second signal, it does not.
_STOP_PATIENCE_S = 8.0


class RefusedToStartError(Exception):
    """The node cannot be created from what it was given; the message says what to change."""


def tune_allocator() -> bool:
    """Let glibc keep the memory of images instead of returning it to the kernel at every message.

    By default every buffer above 128 KiB is mapped and unmapped anew, and zeroed by the kernel each
    time: for a HD image that costs more than all the rest of receiving it. Returns False, and
    changes nothing, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (absent from other C libraries)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    mib = 1 << 20
    settings = ((_M_MMAP_THRESHOLD, 256), (_M_TRIM_THRESHOLD, 512), (_M_TOP_PAD, 64))
    return all([mallopt(name, size * mib) == 1 for name, size in settings])


def give_back_memory() -> bool:
    """Return to the kernel what a model that is gone has left between what is still in use.

    With the settings above the C library keeps it, and the next model, which does not fit into the
    gaps, takes more. Returns False, and does nothing, where the C library is not glibc.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def run(create_node: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Create a node, serve it until SIGINT or SIGTERM, and end in order.

    rclpy's own handlers shut the context down first, so that nothing can be published or answered
    any more on the way out. Here one thread hears of the signals and asks the executor to return;
    then the node ends itself on a context that still works. Blocking the signals and waiting for
    them would not do: threads that numpy and torch started on import would still receive them.

    The executor is the single-threaded one. CPU time per VGA image with its camera_info, measured
    in a lifecycle node: 2.8 ms; multi-threaded 4.9 ms; the experimental events executor 1.6 ms, but
    its ``spin`` of this rclpy cannot be ended in order.

    A node with a method ``report_fault(error)`` is told the exceptions of its callbacks, and goes
    on; one with a true ``abandoned`` ends although a thread is still at work in some library.

    Returns:
        Exit status: 0 after a signal, 2 when the node could not be created (the reason is printed).
    """
    tune_allocator()
    signals = _signal_pipe()
    rclpy.init(
        args=None if args is None else list(args), signal_handler_options=SignalHandlerOptions.NO
    )
    try:
        node = create_node()
    except RefusedToStartError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        rclpy.shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop: Future = Future(executor=executor)
    ended = threading.Event()
    threading.Thread(
        target=_stop_on_signal,
        args=(signals, stop, weakref.ref(executor), ended),
        name="signals",
        daemon=True,
    ).start()
    try:
        _spin(executor, node, stop)
    finally:
        executor.remove_node(node)
        node.destroy_node()
        abandoned = getattr(node, "abandoned", False)
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
        # A lifecycle node and its state machine hold each other, and an executor holds the node of
        # the callback that it ran last; until all are collected the DDS participant lives, and its
        # shared-memory segment would outlive the process.
        del node, executor
        gc.collect()
        ended.set()
        ignore_stop_signals()
        if abandoned:
            # The interpreter would take the libraries apart under a thread that still uses them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return 0


def ignore_stop_signals() -> None:
    """All is in order, and the interpreter takes itself apart, which is a second's work: another
    signal (launch sends one more) would only make the process look as if it had died of it."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _spin(executor: SingleThreadedExecutor, node: Node, stop: Future) -> None:
    """Serve callbacks until ``stop``; an exception of a callback is the node's to deal with."""
    while not stop.done():
        try:
            executor.spin_until_future_complete(stop)
        except ExternalShutdownException:
            return
        except Exception as error:
            if not hasattr(node, "report_fault"):
                raise
            node.report_fault(error)


def _signal_pipe() -> int:
    """A file descriptor from which the numbers of the stop signals can be read, one byte each.

    Python's handler writes them there in whichever thread the kernel delivered the signal.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    return read_end


def _stop_on_signal(
    signals: int,
    stop: Future,
    executor: weakref.ref[SingleThreadedExecutor],
    ended: threading.Event,
) -> None:
    number = os.read(signals, 1)[0]
    stop.set_result(number)
    if (spinning := executor()) is not None:
        spinning.wake()
        del spinning  # this thread may outlive the executor, and must not keep it
    # The main thread may be inside a long call (loading, one frame of a large model).
    second = select.select([signals], [], [], _STOP_PATIENCE_S)[0]
    if not ended.is_set():
        why = "a second signal" if second else f"{_STOP_PATIENCE_S:.0f} s"
        print(f"not ended after {why}; exiting at once", file=sys.stderr, flush=True)
        os._exit(128 + number)

"""Worker processes on this machine, one thread and one pipe for each of them.

A worker that dies leaves an end of file in its pipe, which nobody else writes to: nothing ever waits for it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from queue import SimpleQueue

from converters.base import Unit
from converters.worker import AHEAD, Broke, Result, Setup, WorkerError, serve

PATIENCE_S = 5.0
"""For a worker to end by itself."""


def results(
    setup: Setup,
    batches: Iterator[list[Unit]],
    jobs: int,
    address: str = "",  # noqa: ARG001 - of the protocol
) -> Generator[list[Result], None, None]:
    """See Executor. One job is done by this very process. A worker is started when there is a batch for it."""
    if jobs == 1:
        yield from map(setup.work, batches)
        return
    resource_tracker.ensure_running()  # starting it, Python 3.11 unblocks SIGINT: not between block and start
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()
    threads = ThreadPoolExecutor(jobs, thread_name_prefix="vrl3data-workers")
    pending: deque[Future[list[Result]]] = deque()

    def work(units: Sequence[Unit]) -> list[Result]:
        worker = idle.get()
        try:
            return worker.call(units)
        finally:
            idle.put(worker)

    whole = False
    try:
        for batch in batches:
            if len(workers) < jobs:
                workers.append(_Worker(setup))
                idle.put(workers[-1])
            pending.append(threads.submit(work, batch))
            if len(pending) >= jobs * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        whole = True
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.dismiss() if whole else worker.process.terminate()
        for worker in workers:
            worker.end()
        threads.shutdown()


class _Worker:
    """A process and our end of its pipe. It does one batch at a time."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setup), daemon=True)
        # Until it says that it leaves Ctrl-C to us, a child inherits from the start that it is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def call(self, units: Sequence[Unit]) -> list[Result]:
        try:
            self.connection.send(units)
            found: list[Result] | Broke = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(
                "a worker process died, perhaps for want of memory (then run again with fewer jobs), or because a "
                "script calls convert outside of `if __name__ == '__main__':`; what was confirmed is safe"
            ) from error
        if isinstance(found, Broke):
            found.throw()
        return found

    def dismiss(self) -> None:
        """There is nothing more to do: it lets go of what it holds, and ends."""
        self.connection.close()

    def end(self) -> None:
        """Wait for its end, or make it."""
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()

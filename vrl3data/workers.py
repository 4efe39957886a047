"""Batches made ahead by threads or processes, handed out in order: step s is made by worker s modulo their number.
 Imports
no torch.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

from vrl3data.errors import Vrl3dataError
from vrl3data.exchange import Batch, Ear, Mouth

WorkerKind = Literal["thread", "fork", "spawn"]
KINDS = ("thread", "fork", "spawn")
PATIENCE_S = 5.0
"""How long a process may take to end before it is killed."""


class Plan(Protocol):
    """What batches are: a pure function of the number of the step. For processes it can be copied."""

    @property
    def steps(self) -> int | None:
        """How many there are; None: endless."""

    def batch(self, step: int) -> Batch: ...


class WorkerDied(Vrl3dataError):
    """A process that makes batches ended without being asked to."""

    exit_code = 3


def produce(plan: Plan, first: int, workers: int, kind: WorkerKind, prefetch: int) -> Iterator[Batch]:
    """The batches from step `first` on. Close the iterator to end the workers early."""
    if workers == 0:
        return _here(plan, first)
    if kind == "thread":
        return _threads(plan, first, workers, prefetch)
    return _processes(plan, first, workers, kind, prefetch)


def _here(plan: Plan, first: int) -> Iterator[Batch]:
    return (plan.batch(step) for step in range(first, _end(plan)))


def _threads(plan: Plan, first: int, workers: int, prefetch: int) -> Iterator[Batch]:
    """At most workers * prefetch batches are made or wait."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vrl3data-batches")
    waiting: deque[Future[Batch]] = deque()
    step = first
    try:
        while True:
            while len(waiting) < workers * prefetch and (plan.steps is None or step < plan.steps):
                waiting.append(pool.submit(plan.batch, step))
                step += 1
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processes(plan: Plan, first: int, workers: int, kind: WorkerKind, prefetch: int) -> Iterator[Batch]:
    """Each process makes at most `prefetch` batches ahead."""
    context: Any = multiprocessing.get_context(kind)
    if kind == "spawn":
        resource_tracker.ensure_running()  # starting it, Python 3.11 unblocks SIGINT: not between block and start
    processes: list[Any] = []
    ends: list[Connection] = []
    try:
        for worker in range(workers):
            ours, theirs = context.Pipe()
            ends.append(ours)
            # A forked child holds what we hold: it closes our ends, or a dead parent would never be noticed.
            inherited = tuple(ends) if kind == "fork" else ()
            arguments = (plan, range(first + worker, _end(plan), workers), Mouth(theirs, prefetch), inherited)
            process = context.Process(target=_work, args=arguments, daemon=True)
            # Ctrl-C reaches all of us and the parent decides: a child inherits from the start that it is blocked.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
                processes.append(process)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        ears = [Ear(end) for end in ends]
        for step in range(first, _end(plan)):
            worker = (step - first) % workers
            yield _heard(ears[worker], processes[worker], step)
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(PATIENCE_S)
            if process.exitcode is None:
                process.kill()
                process.join()


def _end(plan: Plan) -> int:
    return sys.maxsize if plan.steps is None else plan.steps


def _work(plan: Plan, steps: range, mouth: Mouth, inherited: tuple[Connection, ...]) -> None:
    """A process: its steps, until nobody listens. An error of ours is sent and is the last thing said."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for connection in inherited:
        connection.close()
    try:
        for step in steps:
            try:
                batch = plan.batch(step)
            except Vrl3dataError as error:
                mouth.connection.send(error)
                break
            mouth.say(batch)
        mouth.wait()
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return


def _heard(ear: Ear, process: Any, step: int) -> Batch:
    try:
        found = ear.hear()
    except (EOFError, OSError) as error:
        process.join(PATIENCE_S)
        raise WorkerDied(
            f"a worker process ended with exit code {process.exitcode} before batch {step}: out of memory, killed, or "
            "an error that it has printed"
        ) from error
    if isinstance(found, Vrl3dataError):
        raise found
    return found

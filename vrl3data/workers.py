"""Batches made ahead by threads or processes, handed out in order: step s is made by worker s modulo their number.

What travels between processes is names, dtypes, shapes and bytes of arrays. Imports no torch.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import numpy as np

from vrl3data.errors import Vrl3dataError

Batch = dict[str, Any]
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
    return _threads(plan, first, workers, prefetch) if kind == "thread" else _processes(plan, first, workers, kind)


def _here(plan: Plan, first: int) -> Iterator[Batch]:
    step = first
    while plan.steps is None or step < plan.steps:
        yield plan.batch(step)
        step += 1


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


def _processes(plan: Plan, first: int, workers: int, kind: WorkerKind) -> Iterator[Batch]:
    """Each process has one batch ready while it waits to be heard."""
    context: Any = multiprocessing.get_context(kind)
    processes: list[Any] = []
    ears: list[Connection] = []
    try:
        for worker in range(workers):
            ear, mouth = context.Pipe(duplex=False)
            ears.append(ear)
            # A forked child holds what we hold: it closes our ends, or a dead parent would never be noticed.
            inherited = tuple(ears) if kind == "fork" else ()
            process = context.Process(target=_work, args=(plan, first + worker, workers, mouth, inherited), daemon=True)
            # Ctrl-C reaches all of us and the parent decides: blocked until the child has said that it ignores it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
                processes.append(process)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            mouth.close()
        step = first
        while plan.steps is None or step < plan.steps:
            worker = (step - first) % workers
            yield _heard(ears[worker], processes[worker], step)
            step += 1
    finally:
        for ear in ears:
            ear.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(PATIENCE_S)
            if process.exitcode is None:
                process.kill()
                process.join()


def _work(plan: Plan, first: int, stride: int, mouth: Connection, inherited: tuple[Connection, ...]) -> None:
    """A process: steps first, first + stride, ... until nobody listens. An error of ours is sent and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for connection in inherited:
        connection.close()
    try:
        for step in _steps(plan, first, stride):
            try:
                batch = plan.batch(step)
            except Vrl3dataError as error:
                mouth.send(error)
                return
            _say(mouth, batch)
    except BrokenPipeError:
        return


def _steps(plan: Plan, first: int, stride: int) -> Iterator[int]:
    step = first
    while plan.steps is None or step < plan.steps:
        yield step
        step += stride


def _say(mouth: Connection, batch: Mapping[str, Any]) -> None:
    arrays = {name: np.ascontiguousarray(value) for name, value in batch.items()}
    mouth.send([(name, value.dtype.str, value.shape) for name, value in arrays.items()])
    for value in arrays.values():
        if value.nbytes:
            mouth.send_bytes(value.reshape(-1).view(np.uint8).data)


def _heard(ear: Connection, process: Any, step: int) -> Batch:
    try:
        head = ear.recv()
        if isinstance(head, Vrl3dataError):
            raise head
        batch = {name: np.empty(shape, dtype) for name, dtype, shape in head}
        for value in batch.values():
            if value.nbytes:
                ear.recv_bytes_into(value.reshape(-1).view(np.uint8).data)
    except (EOFError, OSError) as error:
        process.join(PATIENCE_S)
        raise WorkerDied(
            f"a worker process ended with exit code {process.exitcode} before batch {step}: out of memory, killed, or "
            "an error that it has printed"
        ) from error
    return batch

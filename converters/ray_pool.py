"""Worker processes of a Ray cluster, on this machine or on many that see the sources under the same paths.

What a worker sends comes in parts: small results together, large members in pieces, which the receiver puts into spool
files of its own. Nothing that a worker wrote to its disk is needed after its end. Ray does the work of a worker that
died again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from converters.base import Unit
from converters.worker import AHEAD, Broke, Failed, Result, Setup, WorkerError, prepare
from vrl3data import storage
from vrl3data.errors import ConfigError, MissingExtra, Vrl3dataError
from vrl3data.sample import Body, EncodedSample

PART_BYTES = 16 * 1024**2
"""What travels at a time."""
STORE_BYTES = 512 * 1024**2
"""Memory of a cluster of our own for results under way; more goes to its disk."""
RETRIES = 5
"""How often the work of a worker that died is done again."""


@dataclass(frozen=True)
class _Away:
    """A member whose bytes follow in parts."""

    size: int


def results(
    setup: Setup, batches: Iterator[list[Unit]], jobs: int, address: str = ""
) -> Generator[list[Result], None, None]:
    """See Executor. `jobs` 0: as many as the cluster has cores. MissingExtra, ConfigError if there is no cluster."""
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise MissingExtra("the executor ray needs the extra ray: pip install 'vrl3data[ray]'") from error
    pending: deque[Any] = deque()
    with _cluster(ray, jobs, address):
        jobs = jobs or int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(num_returns="streaming", num_cpus=1, max_retries=RETRIES)(_parts)
        token, kept = uuid.uuid4().hex, ray.put(setup)
        try:
            for batch in batches:
                pending.append(task.remote(token, [kept], batch))
                if len(pending) >= jobs * AHEAD:
                    yield list(_received(ray, pending.popleft(), setup.spool))
            while pending:
                yield list(_received(ray, pending.popleft(), setup.spool))
        except ray.exceptions.RayTaskError as error:
            Broke(None, f"{type(error.cause).__name__}: {error.cause}", str(error)).throw()
        except ray.exceptions.RayError as error:
            raise WorkerError(f"the Ray cluster failed: {_first_line(error)}; {storage.RESUME_HINT}") from error
        finally:
            for left in pending:
                ray.cancel(left, force=True)


@contextlib.contextmanager
def _cluster(ray: Any, jobs: int, address: str) -> Iterator[None]:
    """The cluster that the caller is connected to, that of `address`, or one of our own on this machine."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    own = {"num_cpus": jobs or None, "object_store_memory": STORE_BYTES}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address="local", **own, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at {address or 'this machine'}: {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread: then Ray has left it alone too
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- in a worker -------------------------------------------------------------------------------------------------------

_kept: dict[str, Setup] = {}
"""The setup of this worker, by the token of the run: a converter keeps open what it has opened."""


def _parts(token: str, holder: Sequence[Any], units: Sequence[Unit]) -> Iterator[Any]:
    """Results of `units` in order: lists of results, and samples with members that follow as pieces."""
    prepare()
    small: list[Result] = []
    size = 0
    with tempfile.TemporaryDirectory(prefix="vrl3data-") as spool:
        try:
            setup = replace(_setup(token, holder), spool=Path(spool))
            for unit in units:
                result = setup.one(unit)
                size += 0 if isinstance(result, Failed) else sum(result.sizes())
                small.append(result)
                if size > PART_BYTES or _is_spooled(result):
                    yield from _sent(small)
                    small, size = [], 0
            yield from _sent(small)
        except Vrl3dataError as error:
            yield [*small, Broke(error)]


def _setup(token: str, holder: Sequence[Any]) -> Setup:
    if token not in _kept:
        for old in _kept.values():
            old.converter.close()
        _kept.clear()
        _kept[token] = import_module("ray").get(holder[0])
    return _kept[token]


def _is_spooled(result: Result) -> bool:
    return isinstance(result, EncodedSample) and any(isinstance(body, Path) for _, body in result.members)


def _sent(found: list[Result]) -> Iterator[Any]:
    """`found`, and then the pieces of the members of its last sample that lie in files."""
    last = found[-1] if found else None
    if not isinstance(last, EncodedSample) or not _is_spooled(last):
        yield found
        return
    bodies = [(name, _Away(body.stat().st_size) if isinstance(body, Path) else body) for name, body in last.members]
    yield [*found[:-1], replace(last, members=tuple(bodies))]  # type: ignore[arg-type]
    for _, body in last.members:
        if isinstance(body, Path):
            with body.open("rb") as file:
                while piece := file.read(PART_BYTES):
                    yield piece
    last.discard()


# -- where it is received ----------------------------------------------------------------------------------------------


def _received(ray: Any, generator: Iterable[Any], spool: Path) -> Iterator[Result]:
    """The results of one task, their large members in files in `spool`."""
    parts = (ray.get(reference) for reference in generator)
    for found in parts:
        for result in found:
            if isinstance(result, Broke):
                result.throw()
            if isinstance(result, EncodedSample):
                members = [(name, _fetched(body, parts, spool)) for name, body in result.members]
                result = replace(result, members=tuple(members))
            yield result


def _fetched(body: Body | _Away, parts: Iterator[Any], spool: Path) -> Body:
    if not isinstance(body, _Away):
        return body
    with storage.writing(spool, storage.RESUME_HINT):
        spool.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=spool, suffix=".member", delete=False) as file:
            left = body.size
            while left > 0:
                piece = next(parts)
                file.write(piece)
                left -= len(piece)
    return Path(file.name)

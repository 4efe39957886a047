"""Batches: an iterator that says exactly where it is, and goes on from there in another process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol

from vrl3data.dataset import Dataset
from vrl3data.errors import ConfigError, did_you_mean
from vrl3data.exchange import Batch
from vrl3data.order import OrderSpec
from vrl3data.sampling import Ints
from vrl3data.workers import KINDS, Plan, WorkerKind, produce

STATE_VERSION = 1


def identity_of(dataset: Dataset, positions: Ints, spec: OrderSpec) -> dict[str, Any]:
    """What batches of these samples follow from, as JSON; neither the rank nor where iteration ends."""
    found = dataset.manifest
    facts = {
        "dataset": found.fingerprint or f"{found.dataset_id}, {len(dataset)} samples",
        "positions": dataset.mark(positions),
        **asdict(spec),
    }
    del facts["rank"], facts["epochs"]
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


@dataclass(frozen=True)
class DeliverySpec:
    """How batches are made; changes nothing in them.

    `workers` threads (or processes, by `worker_kind` fork or spawn) make them ahead: at most `prefetch` for each. NumPy
    and the decoders let threads run side by side, so threads are the default; a process passes each batch on as a copy.
    """

    workers: int = 0
    worker_kind: WorkerKind = "thread"
    prefetch: int = 2

    def check(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise ConfigError(f"expected workers >= 0 and prefetch >= 1, found {self.workers} and {self.prefetch}")
        if self.worker_kind not in KINDS:
            raise ConfigError(f"worker_kind {self.worker_kind!r}{did_you_mean(self.worker_kind, KINDS)}")


class Source(Plan, Protocol):
    """A plan that can say what it is made of."""

    @property
    def steps_per_epoch(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """All that the batches follow from, as JSON; a state with another is refused."""


class Batches:
    """The batches of all epochs, one after the other: `for batch in batches`. Iterating again goes on.

    Use it as a context manager, or `close()` it, to end workers early. It may not be shared between threads.
    """

    def __init__(self, source: Source, delivery: DeliverySpec | None = None) -> None:
        self.source, self.delivery = source, delivery or DeliverySpec()
        self.delivery.check()
        self.delivered = 0
        self._running: Iterator[Batch] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank in an epoch."""
        return self.source.steps_per_epoch

    @property
    def epoch(self) -> int:
        """That of the next batch, from 0."""
        return self.delivered // self.source.steps_per_epoch

    def __len__(self) -> int:
        """Batches of this rank over all epochs; TypeError if they never end."""
        if self.source.steps is None:
            raise TypeError("endless batches have no length; give epochs")
        return self.source.steps

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self._running is None:
            spec = self.delivery
            self._running = produce(self.source, self.delivered, spec.workers, spec.worker_kind, spec.prefetch)
        try:
            batch = next(self._running)
        except BaseException:
            self.close()  # asked again, it tries again: an error never looks like the end
            raise
        self.delivered += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where iteration is, as JSON: batches that were handed out count, those made ahead do not."""
        return {"version": STATE_VERSION, "delivered": self.delivered, "identity": self.source.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that were handed out when `state` was taken, whatever storage and workers now are.

        ConfigError, by name, if it is of another dataset, other options or another number of ranks.
        """
        if not isinstance(state, Mapping) or not {"version", "delivered", "identity"} <= set(state):
            raise ConfigError("this is not the state of batches: expected version, delivered and identity")
        if state["version"] != STATE_VERSION:
            raise ConfigError(f"the state has version {state['version']!r}, this release reads {STATE_VERSION}")
        then, now = state["identity"], self.source.identity()
        different = differences(then, now) if isinstance(then, Mapping) else ["identity"]
        if different:
            raise ConfigError(f"the state is of other batches: {', '.join(different)}")
        delivered = state["delivered"]
        if not isinstance(delivered, int) or isinstance(delivered, bool) or delivered < 0:
            raise ConfigError(f"delivered: expected a whole number, found {delivered!r}")
        self.close()
        self.delivered = delivered

    def as_torch_dataset(self) -> Any:
        """A torch IterableDataset of the batches that are left, for a DataLoader with batch_size=None. Its workers
        take turns, so the order is the same; `workers` given here are not used."""
        return import_module("vrl3data.torch_batches").TorchBatches(self.source, self.delivered)

    def close(self) -> None:
        """End the workers; iterating again starts them anew."""
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:  # fmt: skip
        self.close()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`world 2, not 1` for each entry that differs."""
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    return [f"{name} {then.get(name)!r}, not {now.get(name)!r}" for name in names]

"""Batches for torch's DataLoader. Imported on demand: the only module of the loader that needs torch."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

from vrl3data.exchange import Batch
from vrl3data.workers import Plan


class TorchBatches(IterableDataset[Batch]):
    """The batches of `plan` from step `first` on; worker w of n makes steps first + w, first + w + n, ..."""

    def __init__(self, plan: Plan, first: int = 0) -> None:
        self.plan, self.first = plan, first

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        step, stride = self.first + (info.id if info else 0), info.num_workers if info else 1
        while self.plan.steps is None or step < self.plan.steps:
            yield self.plan.batch(step)
            step += stride

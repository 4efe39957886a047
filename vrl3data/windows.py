"""Windows over episodes: batches of frame stacks, n-step returns, chunks, goals, for any storage. Imports no torch.

Legend as in window_spec.py: B windows, K frames of a stack, L steps, M ordered frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vrl3data.dataset import Dataset
from vrl3data.delivery import Batches, DeliverySpec, identity_of
from vrl3data.errors import ConfigError, locate
from vrl3data.exchange import Batch
from vrl3data.loader import STORAGES, EpisodeTable, Readers, load_episodes
from vrl3data.order import Order
from vrl3data.sample import feature_members
from vrl3data.sampling import (
    Ints,
    Starts,
    chunk_rows,
    future_states,
    n_step,
    ordered_states,
    random_states,
    stack_rows,
    uniform_future_states,
)
from vrl3data.window_spec import StorageSpec, WindowSpec, choose_storage, resolved, split_options


class WindowPlan:
    """Which windows there are and what they hold. A copy for another process opens the dataset anew."""

    def __init__(self, dataset: Dataset, spec: WindowSpec, storage: StorageSpec) -> None:
        spec.check()
        with locate(path=dataset.path):
            self.spec, self.dataset = resolved(spec, dataset.schema), dataset
            kind = storage.storage
            if kind == "auto":
                kind = choose_storage(dataset, self.spec)
            self.storage = replace(storage, storage=kind)
            names = dict.fromkeys((*self.cameras, *self.names, *spec.also))
            self.table: EpisodeTable = load_episodes(
                dataset, tuple(names), positions=storage.positions, split=storage.split, storage=kind,
                cache_bytes=storage.cache_bytes,
            )  # fmt: skip
            self.layout = self.table.layout
            self.order = Order(self.spec, self._starts())
        self.positions_E, self._readers = np.asarray(self.table.positions, np.int64), Readers(dataset)
        described = self.table.features.values()
        self._members = [member for f in described for member in feature_members(f, dataset.schema)]

    def __reduce__(self) -> tuple[Any, ...]:
        return WindowPlan, (self.dataset, self.spec, replace(self.storage, split=None, positions=self.table.positions))

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.spec.cameras or ()

    @property
    def names(self) -> tuple[str, ...]:
        """Features besides cameras."""
        return self.spec.features or ()

    @property
    def device(self) -> bool:
        return self.storage.storage not in STORAGES

    @property
    def steps(self) -> int | None:
        return self.order.steps

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def identity(self) -> dict[str, Any]:
        """What the batches follow from; neither the rank nor where iteration ends."""
        return identity_of(self.dataset, self.positions_E, self.spec)

    def batch(self, step: int) -> Batch:
        """That of a step, for this rank."""
        number_B, valid_B = self.order.numbers(step)
        found = self.take(number_B, self.order.rng(step))
        return self.finished(found | {"valid": valid_B} if self.spec.pad_last else found)

    def finished(self, batch: Batch) -> Batch:
        """As it is handed out: on the device, for device storage."""
        if not self.device:
            return batch
        import torch

        on = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in batch.items()}
        return {name: value.to(self.storage.storage) for name, value in on.items()}

    def take(self, number_B: Ints, rng: np.random.Generator) -> Batch:
        """The windows of these numbers, 0 .. order.total - 1 through all episodes in their order."""
        spec = self.spec
        at = self.order.starts.place(number_B)
        if self.dataset.remote and self.storage.storage == "stream":
            # All that the windows need, in few requests; what only goals need is fetched when it is asked for.
            self._readers.mine().prefetch(self.positions_E[np.unique(at[0])].tolist(), self._members)
        found: Batch = {"episode": self.positions_E[at[0]], "step": at[1]}
        if spec.sequence:
            found |= self._sequence(*at, spec.sequence)
        else:
            found |= self._moment("", *at)
            found |= {name: self._steps(name, *at) for name in self.names if not self._is_state(name)}
        if spec.action_horizon:
            rows_BL, real_BL = chunk_rows(self.layout, *at, spec.action_horizon)
            found |= {spec.action: self.table.gather(spec.action, rows_BL), "action_mask": real_BL}
        if spec.n_step:
            found |= self._n_step(*at, spec.n_step)
        if spec.goals:
            found |= self._goals(*at, rng)
        if spec.ordered:
            t_BM, mask_B = ordered_states(self.layout, at[0], spec.ordered, rng)
            found |= {"ordered.step": t_BM, "ordered.mask": mask_B}
            found |= {f"ordered.{name}": self._stacks(name, at[0], t_BM) for name in self.cameras}
        if spec.ends:
            for prefix, t_B in (("first", np.zeros_like(at[1])), ("last", self.layout.states_E[at[0]] - 1)):
                found |= {f"{prefix}.{name}": self._stacks(name, at[0], t_B) for name in self.cameras}
        return found

    def _starts(self) -> Starts:
        spec, layout = self.spec, self.layout
        rows_E = layout.lengths_E
        if spec.n_step:
            starts = Starts.of(layout, spec.n_step, whole=spec.whole, by=spec.by)
        else:
            stepwise = spec.action_horizon or any(not self._is_state(name) for name in self.names)
            rows_E = layout.lengths_E if stepwise else layout.states_E
            starts = Starts(rows_E, spec.by)
        if spec.whole:
            longest = max(spec.action_horizon or 1, spec.sequence or 1)
            return Starts(np.clip(starts.counts_E, 0, rows_E - longest + 1).clip(0), spec.by)
        return starts

    def _is_state(self, name: str) -> bool:
        return self.table.features[name].rows == "state"

    def _stacks(self, name: str, episode_B: Ints, t: Ints) -> Any:
        """Of the states t, (B,) or (B, L): shape (*t.shape, K, ...)."""
        episode = np.broadcast_to(episode_B.reshape(-1, *[1] * (t.ndim - 1)), t.shape).reshape(-1)
        rows_NK = stack_rows(self.layout, episode, t.reshape(-1), self.spec.frame_stack, self.spec.frame_stride)
        return self.table.gather(name, rows_NK.reshape(*t.shape, self.spec.frame_stack))

    def _moment(self, prefix: str, episode_B: Ints, t_B: Ints) -> Batch:
        """Stacks and state features at t."""
        found = {prefix + name: self._stacks(name, episode_B, t_B) for name in self.cameras}
        rows_B = self.layout.state_rows(episode_B, t_B)
        return found | {prefix + name: self.table.gather(name, rows_B) for name in self.names if self._is_state(name)}

    def _steps(self, name: str, episode_B: Ints, t_B: Ints) -> Any:
        return self.table.gather(name, self.layout.step_rows(episode_B, t_B))

    def _sequence(self, episode_B: Ints, t_B: Ints, length: int) -> Batch:
        t_BL, episode_B1 = t_B[:, None] + np.arange(length), episode_B[:, None]
        state_BL = np.minimum(t_BL, self.layout.states_E[episode_B1] - 1)
        step_BL = np.minimum(t_BL, self.layout.lengths_E[episode_B1] - 1)
        found: Batch = {"state_mask": t_BL == state_BL, "step_mask": t_BL == step_BL}
        found |= {name: self._stacks(name, episode_B, state_BL) for name in self.cameras}
        for name in self.names:
            state = self._is_state(name)
            rows = self.layout.state_rows(episode_B1, state_BL) if state else self.layout.step_rows(episode_B1, step_BL)
            found[name] = self.table.gather(name, rows)
        return found

    def _n_step(self, episode_B: Ints, t_B: Ints, n: int) -> Batch:
        spec = self.spec
        step = n_step(
            self.layout, lambda rows: self.table.gather(spec.reward, rows), (episode_B, t_B), n, spec.discount
        )  # fmt: skip
        return self._moment("next.", episode_B, step.next_t_B) | {
            "return": step.returns_B.astype(np.float32), "discount": step.discount_B.astype(np.float32),
            "mask": step.mask_B,
        }  # fmt: skip

    def _goals(self, episode_B: Ints, t_B: Ints, rng: np.random.Generator) -> Batch:
        weights = self.spec.goal_weights
        kind_B = rng.choice(len(weights), len(t_B), p=list(weights.values()))
        goal_episode_B, goal_t_B, mask_B = episode_B.copy(), t_B.copy(), np.ones(len(t_B), bool)
        last_B = self.layout.states_E[episode_B] - 1
        for number, kind in enumerate(weights):
            of = np.flatnonzero(kind_B == number)
            if kind == "random":
                goal_episode_B[of], goal_t_B[of] = random_states(self.layout, len(of), rng)
                continue
            goal_t_B[of] = self._ahead(kind, episode_B[of], t_B[of], rng)
            mask_B[of] = t_B[of] < last_B[of]
        return self._moment("goal.", goal_episode_B, goal_t_B) | {
            "goal.episode": self.positions_E[goal_episode_B], "goal.step": goal_t_B, "goal.mask": mask_B,
        }  # fmt: skip

    def _ahead(self, kind: str, episode_B: Ints, t_B: Ints, rng: np.random.Generator) -> Ints:
        if kind == "geometric":
            return future_states(self.layout, episode_B, t_B, self.spec.goal_discount, rng)
        if kind == "uniform":
            return uniform_future_states(self.layout, episode_B, t_B, rng)
        return self.layout.states_E[episode_B] - 1


def windows(dataset: Dataset, batch_size: int, **options: Any) -> Batches:
    """Batches of windows over the episodes of `dataset`.

    `options` are the fields of WindowSpec (what a window holds), OrderSpec (which come when), StorageSpec and
    DeliverySpec. ConfigError for unknown ones and for what does not fit the dataset.
    """
    specs = split_options(options | {"batch_size": batch_size}, (WindowSpec, StorageSpec, DeliverySpec))
    plan = WindowPlan(dataset, WindowSpec(**specs[0]), StorageSpec(**specs[1]))
    delivery = DeliverySpec(**specs[2])
    if delivery.workers and delivery.worker_kind != "thread" and plan.device:
        raise ConfigError(f"storage {plan.storage.storage!r} cannot be shared with processes; use worker_kind 'thread'")
    return Batches(plan, delivery)

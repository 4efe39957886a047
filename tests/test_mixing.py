"""Mixing: shares are exact, nothing comes twice before everything came once, schemas are reconciled or refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_episode, make_pictures, make_schema, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from vrl3data.delivery import Batches
from vrl3data.errors import ConfigError
from vrl3data.mixing import MixPlan, mix
from vrl3data.schema import Schema
from vrl3data.writer import Writer

CAMERA, OTHER = "obs.image.top", "obs.image.front"


def write(path: Path, schema: Schema, first: int, count: int, names: dict[str, str] | None = None) -> vrl3data.Dataset:
    with Writer(path, make_spec(schema, source=path.name)) as writer:
        for number in range(first, first + count):
            episode = make_episode(number, length=4 + number % 3)
            values = {(names or {}).get(name, name): value for name, value in episode.values.items()}
            writer.write(replace(episode, values={name: values[name] for name in schema.names}))
        writer.finish()
    return vrl3data.open(path)


def changed(**how: Any) -> Schema:
    """The schema of the tests with the camera replaced."""
    schema = make_schema()
    features = [replace(f, **how) if f.name == CAMERA else f for f in schema.features]
    return Schema("episodes", tuple(features), schema.extras)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[vrl3data.Dataset]:
    """Two alike; one whose camera has another name; one without a camera and without rewards."""
    root, schema = tmp_path_factory.mktemp("mixing"), make_schema()
    poor = Schema("episodes", tuple(f for f in schema.features if f.name in ("obs.state", "action")))
    return [
        write(root / "one", schema, 0, 3),
        write(root / "two", schema, 10, 4),
        write(root / "renamed", changed(name=OTHER), 20, 3, {CAMERA: OTHER}),
        write(root / "poor", poor, 30, 2),
    ]


def collect(batches: Batches, count: int | None = None) -> list[dict[str, np.ndarray]]:
    with batches:
        return list(islice(batches, count))


def assert_equal(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]) -> None:
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(np.asarray(first[name]), np.asarray(second[name])) for name in first)


def windows_of(batches: list[dict[str, np.ndarray]], number: int) -> Counter[tuple[int, int]]:
    return Counter(
        (int(e), int(t)) for batch in batches
        for d, e, t in zip(batch["dataset"], batch["episode"], batch["step"], strict=True) if d == number
    )  # fmt: skip


def test_every_row_is_a_window_of_the_dataset_it_names(sets):
    for batch in collect(mix({sets[0]: 0.7, sets[1]: 0.3}, 8, n_step=2, goals="final"), 12):
        for row in range(8):
            source = sets[batch["dataset"][row]][int(batch["episode"][row])]
            t = int(batch["step"][row])
            assert np.array_equal(batch[CAMERA][row, 0], source[CAMERA][t])
            assert np.array_equal(batch["action"][row], source["action"][t])
            assert np.array_equal(batch["goal.obs.state"][row], source["obs.state"][source.length])
            assert batch["return"][row] == pytest.approx(
                sum(0.99**k * source["reward"][t + k] for k in range(min(2, source.length - t))), rel=1e-5, abs=1e-6
            )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.001, 10), min_size=2, max_size=4), st.integers(1, 9))
def test_shares_are_those_of_the_weights_at_every_step(sets, weights, size):
    plan = mix(dict(zip(sets, weights, strict=False)), size, features=["obs.state"], cameras=[]).source
    assert isinstance(plan, MixPlan)
    before = np.zeros(len(weights), int)
    for step in range(1, 60):
        counts = np.array(plan.counts(step))
        assert counts.sum() == step * size
        assert (counts >= before).all()
        assert (np.abs(counts - step * size * np.array(weights) / sum(weights)) < len(weights)).all()
        before = counts


def test_no_window_comes_twice_before_all_came_once(sets):
    batches = collect(mix({sets[0]: 2, sets[1]: 1}, 5, seed=3), 30)
    for number, length in ((0, 15), (1, 20)):
        counts = windows_of(batches, number)
        assert len(counts) == min(length, counts.total())
        assert max(counts.values()) - (min(counts.values()) if len(counts) == length else 0) <= 1


def test_the_ends_that_can_be_asked_for(sets):
    for weights in ({sets[0]: 1, sets[1]: 1}, {sets[0]: 5, sets[1]: 1}):
        first = collect(mix(weights, 4, until="first"))
        assert max(max(windows_of(first, number).values()) for number in (0, 1)) == 1
        more = collect(mix(weights, 4), len(first) + 1)
        assert max(max(windows_of(more, number).values()) for number in (0, 1)) == 2
        every = collect(mix(weights, 4, until="all"))
        assert [len(windows_of(every, number)) for number in (0, 1)] == [15, 20]
        assert [len(windows_of(every[:-1], number)) for number in (0, 1)] != [15, 20]
    with pytest.raises(TypeError, match="endless"):
        len(mix(weights, 4))
    with pytest.raises(ConfigError, match="fewer windows than its share of one batch"):
        mix(weights, 64, until="first")


def test_ranks_are_disjoint_and_together_the_whole(sets):
    weights = {sets[0]: 0.5, sets[1]: 0.5}
    whole = collect(mix(weights, 6), 5)
    parts = [collect(mix(weights, 3, rank=rank, world=2, workers=rank), 5) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        both = [np.concatenate([part[step][name] for part in parts]) for name in ("dataset", "episode", "step")]
        assert all(
            np.array_equal(value, batch[name]) for value, name in zip(both, ("dataset", "episode", "step"), strict=True)
        )


@pytest.mark.parametrize(("workers", "kind"), [(3, "thread"), (2, "fork"), (2, "spawn")])
def test_workers_storage_and_resuming_change_nothing(sets, workers, kind):
    options: dict[str, Any] = {"n_step": 2, "goals": "geometric", "frame_stack": 2, "until": "first"}
    weights = {sets[0]: 0.4, sets[1]: 0.6}
    wanted = collect(mix(weights, 4, storage="ram", **options))
    first = mix(weights, 4, storage="mmap", workers=workers, worker_kind=kind, **options)
    got = collect(first, 3)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["delivered"] == 3
    second = mix(weights, 4, storage="stream", workers=workers, worker_kind=kind, **options)
    second.load_state_dict(state)
    assert_equal(got + collect(second), wanted)
    assert_equal(collect(mix(weights, 4, storage="cpu", **options)), wanted)
    with pytest.raises(ConfigError, match=r"weights \[0.4, 0.6\], not \[0.5, 0.6\]"):
        mix({sets[0]: 0.5, sets[1]: 0.6}, 4, **options).load_state_dict(state)
    with pytest.raises(ConfigError, match="dataset of dataset 1"):
        mix({sets[0]: 0.4, sets[2]: 0.6}, 4, rename={sets[2]: {OTHER: CAMERA}}, **options).load_state_dict(state)


def test_cameras_are_renamed(sets):
    for batch in collect(mix({sets[0]: 1, sets[2]: 1}, 6, rename={sets[2]: {OTHER: CAMERA}}, n_step=1), 6):
        assert OTHER not in batch and "next." + OTHER not in batch
        for row in range(6):
            number, position, t = (int(batch[name][row]) for name in ("dataset", "episode", "step"))
            source = np.asarray(sets[0][position][CAMERA] if number == 0 else sets[2][position][OTHER])
            assert np.array_equal(batch[CAMERA][row, 0], source[t])
            assert np.array_equal(batch["next." + CAMERA][row, 0], source[t + 1])


def test_only_common_features_unless_filled(sets):
    common = next(mix({sets[0]: 1, sets[3]: 1}, 6))
    assert set(common) == {"episode", "step", "dataset", "obs.state", "action"}
    for batch in collect(mix({sets[0]: 1, sets[3]: 1}, 6, fill=True), 4):
        known = batch["dataset"] == 0
        assert np.array_equal(batch[CAMERA + ".known"], known)
        assert np.array_equal(batch["reward.known"], known)
        assert batch["action.known"].all()
        assert not batch[CAMERA][~known].any() and batch[CAMERA][known].any()
    lonely = mix({sets[0]: 1e-6, sets[3]: 1}, 6, fill=True)  # even where no row of a batch has it
    assert next(lonely)[CAMERA].shape == (6, 1, 12, 12, 3)


def test_what_does_not_fit_is_refused_and_both_are_named(tmp_path, sets):
    wide = Schema("episodes", tuple(replace(f, dtype="float64") if f.name == "obs.state" else f
                                    for f in make_schema().features if f.name in ("obs.state", "action")))  # fmt: skip
    with Writer(tmp_path / "wide", make_spec(wide)) as writer:
        values = make_episode(0).values
        state = np.asarray(values["obs.state"], np.float64)
        writer.write(replace(make_episode(0), values={"obs.state": state, "action": values["action"]}))
        writer.finish()
    with vrl3data.open(tmp_path / "wide") as other:
        named = r"obs.state: dtype is 'float32' in made-up \(.*one\) and 'float64' in made-up \(.*wide\)"
        with pytest.raises(ConfigError, match=named):
            mix({sets[0]: 1, other: 1}, 4)
        next(mix({sets[0]: 1, other: 1}, 4, features=["action"]))
    flipped = write(tmp_path / "flipped", changed(color="gray"), 0, 1)
    with pytest.raises(ConfigError, match="color is 'rgb' in .* and 'gray' in"):
        mix({sets[0]: 1, flipped: 1}, 4)


def test_wrong_mixes_are_refused_by_name(tmp_path, sets):
    one, two, renamed, poor = sets
    both = {one: 1.0, two: 1.0}
    wrong: list[tuple[dict[Any, float], dict[str, Any], str]] = [
        ({one: 1}, {}, "at least two datasets to mix, found 1"),
        ({one: 1, two: 0}, {}, "expected a weight above 0, found 0"),
        ({one: 1, two: float("nan")}, {}, "expected a weight above 0, found nan"),
        ({one: 1, two: 1e-12}, {}, "one is less than 1 /"),
        (both, {"until": "al"}, "until 'al'; did you mean 'all'"),
        (both, {"split": "train"}, "split says nothing about a mix"),
        (both, {"frame_stak": 2}, "did you mean 'frame_stack'"),
        (both, {"rename": {poor: {}}}, "is not in the mix"),
        (both, {"rename": {one: {"obs.image.tpo": OTHER}}}, "has no feature 'obs.image.tpo'; did you mean"),
        (both, {"rename": {one: {"action": "reward"}}}, "would have two features 'reward'"),
        ({one: 1, renamed: 1}, {"cameras": [CAMERA]}, "renamed.* has no feature 'obs.image.top'.*rename one, or fill"),
        ({one: 1, poor: 1}, {"n_step": 1, "fill": True}, "poor.* has no feature 'reward'"),
        (both, {"features": ["actoin"], "fill": True}, "has no feature 'actoin'; did you mean 'action'"),
        (both, {"storage": "cpu", "workers": 1, "worker_kind": "fork"}, "cannot be shared with processes"),
    ]
    for weights, options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            mix(weights, 4, **options)
    vrl3data.convert("imagenet", make_pictures(tmp_path / "pictures"), tmp_path / "images")
    with vrl3data.open(tmp_path / "images") as images, pytest.raises(ConfigError, match="found one of images"):
        mix({one: 1, images: 1}, 4)
    lonely = Schema("episodes", tuple(replace(f, name="other") for f in make_schema().features if f.name == "action"))
    strange = write(tmp_path / "strange", lonely, 0, 1, {"action": "other"})
    with pytest.raises(ConfigError, match="have no feature in common"):
        mix({one: 1, strange: 1}, 4)

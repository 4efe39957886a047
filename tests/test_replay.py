"""Loader and replay: what a batch holds is what the dataset holds, whatever the storage and whatever came online."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_episode, make_schema, make_spec, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import vrl3data
from vrl3data.errors import ConfigError, DamagedError
from vrl3data.loader import load_episodes
from vrl3data.replay import BatchSpec, Replay
from vrl3data.sampling import Starts
from vrl3data.writer import Writer

CAMERA = "obs.image.top"
FEATURES = (CAMERA, "obs.state", "action", "reward")
SPEC = BatchSpec((CAMERA,), "obs.state", frames=3, n_step=2, gamma=0.9)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> vrl3data.Dataset:
    """Five episodes in several shards; every other one without a final observation."""
    path = tmp_path_factory.mktemp("replay") / "set"
    with Writer(path, make_spec(shard_size=20_000)) as writer:
        for number in range(5):
            writer.write(make_episode(number, length=4 + number, final=bool(number % 2)))
        writer.finish()
    return vrl3data.open(path)


@pytest.mark.parametrize("storage", ["ram", "mmap", "stream", "cpu"])
def test_every_storage_gathers_the_rows_of_the_dataset(dataset, storage):
    assert len({dataset.place(i)[1] for i in range(5)}) > 1
    table = load_episodes(dataset, FEATURES, storage=storage)
    for name in FEATURES:
        wanted = np.concatenate([np.asarray(dataset[i][name]) for i in range(5)])
        assert np.array_equal(np.asarray(table.array(name)), wanted)
    rows = np.random.default_rng(0).integers(0, table.layout.states, (7, 3))
    wanted = np.concatenate([np.asarray(dataset[i][CAMERA]) for i in range(5)])[rows]
    assert np.array_equal(np.asarray(table.gather(CAMERA, rows)), wanted)


def test_mapped_rows_that_are_damaged_are_found(tmp_path):
    path = write_dataset(tmp_path / "set")
    shard = next((path / "data").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    with vrl3data.open(path) as dataset:
        offset = int(dataset.index[f"{CAMERA}.npy.offset"].to_numpy()[1])
    data[offset + 200] ^= 255
    shard.write_bytes(bytes(data))
    with vrl3data.open(path) as dataset, pytest.raises(DamagedError, match="do not have the hash"):
        load_episodes(dataset, [CAMERA], storage="mmap")


def test_what_cannot_be_loaded_is_refused(tmp_path, dataset):
    with pytest.raises(ConfigError, match=r"no feature 'actoin'; did you mean 'action'"):
        load_episodes(dataset, ["actoin"])
    with pytest.raises(ConfigError, match="has rows 'episode'"):
        load_episodes(dataset, ["sim.goal"])
    with pytest.raises(ConfigError, match="no episodes were chosen"):
        load_episodes(dataset, ["action"], positions=[])
    coded = write_dataset(tmp_path / "png", spec=make_spec(make_schema("png")))
    with vrl3data.open(coded) as other, pytest.raises(ConfigError, match="coded as png; use storage 'ram'"):
        load_episodes(other, [CAMERA], storage="mmap")


@pytest.mark.parametrize("storage", ["ram", "mmap", "stream", "cpu"])
def test_a_batch_is_what_the_dataset_says(dataset, storage):
    replay = Replay(SPEC, load_episodes(dataset, FEATURES, storage=storage))
    batch = replay.sample(64, np.random.default_rng(0))
    assert batch["obs"].shape == (64, 9, 12, 12)
    found = 0
    for i in range(64):
        for episode in range(5):
            steps = np.flatnonzero((np.asarray(dataset[episode]["action"], np.float32) == batch["action"][i]).all(1))
            for t in steps:
                check_item(dataset[episode], batch, i, int(t))
                found += 1
    assert found == 64


def check_item(sample, batch, i: int, t: int) -> None:
    images, states, rewards = (np.asarray(sample[name]) for name in (CAMERA, "obs.state", "reward"))
    length, last = len(rewards), len(images) - 1
    steps = min(2, last - t)
    stack = np.concatenate([images[max(0, t - back)].transpose(2, 0, 1) for back in (2, 1, 0)])
    after = np.concatenate([images[max(0, t + steps - back)].transpose(2, 0, 1) for back in (2, 1, 0)])
    assert np.array_equal(np.asarray(batch["obs"][i]), stack)
    assert np.array_equal(np.asarray(batch["next_obs"][i]), after)
    assert np.array_equal(batch["sensor"][i], states[t])
    assert np.array_equal(batch["next_sensor"][i], states[t + steps])
    assert batch["return"][i] == pytest.approx(sum(0.9**k * rewards[t + k] for k in range(steps)), rel=1e-5, abs=1e-6)
    assert batch["discount"][i] == pytest.approx(0.9**steps)
    assert batch["mask"][i] == 1
    assert t < length


def test_two_cameras_lie_within_a_frame():
    spec = BatchSpec(("obs.image.a", "obs.image.b"), None, frames=2)
    replay = Replay(spec, None, 10)
    images = {name: np.full((3, 4, 4, 3), base, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
              for name, base in (("obs.image.a", 10), ("obs.image.b", 20))}  # fmt: skip
    replay.add({**images, "action": np.array([[0.0], [1.0]]), "reward": np.zeros(2)}, terminated=False)
    batch = replay.sample(20, np.random.default_rng(0))
    for obs, action in zip(batch["obs"], batch["action"], strict=True):
        t = int(action[0])
        assert obs[:, 0, 0].tolist() == [10] * 3 + [20] * 3 + [10 + t] * 3 + [20 + t] * 3


def online(number: int, length: int) -> dict[str, np.ndarray]:
    """An episode whose every value says which it is and where."""
    rows = np.arange(length + 1)
    return {"obs.state": np.stack([np.full(length + 1, number), rows, rows], 1).astype(np.float32),
            "action": np.stack([np.full(length, number), rows[:-1]], 1).astype(np.float32),
            "reward": (100.0 * number + rows[:-1]).astype(np.float32)}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(10, 30), st.integers(1, 3))
def test_the_ring_keeps_the_newest_episodes_whole(lengths, capacity, n):
    spec = BatchSpec((), "obs.state", n_step=n)
    replay, rng = Replay(spec, None, capacity), np.random.default_rng(0)
    for number, length in enumerate(lengths):
        replay.add(online(number, length), terminated=False)
        kept = replay.online_numbers
        assert kept == list(range(number - len(kept) + 1, number + 1))
        assert sum(lengths[k] + 1 for k in kept) <= capacity
        batch = replay.sample(16, rng)
        for sensor, after, action in zip(batch["sensor"], batch["next_sensor"], batch["action"], strict=True):
            assert sensor[0] == after[0] == action[0]
            assert sensor[1] == action[1]
            assert after[1] == min(sensor[1] + n, lengths[int(sensor[0])])


def test_a_replay_goes_on_exactly_where_it_was():
    spec = BatchSpec((), "obs.state", n_step=2)
    first, stored = Replay(spec, None, 25), {}
    for number in range(9):
        stored[first.added] = online(number, 3 + number % 4)
        first.add(stored[first.added], terminated=number % 2 == 0)
    second = Replay(spec, None, 25)
    second.restore(first.state(), stored.__getitem__)
    for replay in (first, second):
        replay.add(online(9, 5), terminated=False)
    for seed in range(3):
        one, two = (replay.sample(32, np.random.default_rng(seed)) for replay in (first, second))
        assert all(np.array_equal(one[name], two[name]) for name in one if one[name] is not None)


def test_demonstrations_stay_and_can_be_asked_for(dataset):
    table = load_episodes(dataset, FEATURES)
    replay = Replay(BatchSpec((), "obs.state"), table, 12)
    before = replay.sample(8, np.random.default_rng(1), episodes="offline", bootstrap=False)
    for number in range(20):
        episode = online(number, 5)
        replay.add(episode, terminated=False)
    after = replay.sample(8, np.random.default_rng(1), episodes="offline", bootstrap=False)
    assert np.array_equal(before["action"], after["action"])
    assert set(after) == {"obs", "action", "sensor"}
    assert replay.layout.episodes == 5 + len(replay.online_numbers)


@pytest.mark.parametrize("storage", ["ram", "mmap", "stream", "cpu"])
@pytest.mark.parametrize(("share", "offline"), [(0.5, 16), (0.25, 8), (0.0, 0), (1.0, 32)])
def test_shares_are_exact_and_demonstrations_come_first(dataset, storage, share, offline):
    replay = Replay(SPEC, load_episodes(dataset, FEATURES, storage=storage), 60)
    images = np.zeros((6, 12, 12, 3), np.uint8)
    for number in range(100, 103):
        replay.add({**online(number, 5), CAMERA: images, "action": np.full((5, 2), number)}, terminated=False)
    batch = replay.sample(32, np.random.default_rng(0), share_offline=share)
    assert (batch["action"][:offline] < 2).all()
    assert (batch["action"][offline:] >= 100).all()
    assert {name: len(value) for name, value in batch.items()} == dict.fromkeys(batch, 32)
    assert set(batch) == set(replay.sample(4, np.random.default_rng(0)))
    cloned = replay.sample(32, np.random.default_rng(0), share_offline=share, bootstrap=False)
    assert (cloned["action"][:offline] < 2).all() and (cloned["action"][offline:] >= 100).all()


def test_a_share_of_nothing_is_refused(dataset):
    replay = Replay(BatchSpec((), "obs.state"), load_episodes(dataset, FEATURES), 20)
    assert replay.offers("offline") and not replay.offers("online")
    with pytest.raises(ConfigError, match="no online episode has 1 steps"):
        replay.sample(4, np.random.default_rng(0), share_offline=0.5)
    with pytest.raises(ConfigError, match="share_offline: expected 0 to 1, found 2"):
        replay.sample(4, np.random.default_rng(0), share_offline=2)
    replay.add(online(0, 3), terminated=False)
    assert replay.offers("online")
    alone = Replay(BatchSpec((), "obs.state"), None, 20)
    alone.add(online(0, 3), terminated=False)
    with pytest.raises(ConfigError, match="no offline episode"):
        alone.sample(4, np.random.default_rng(0), share_offline=0.5)


def test_without_a_share_the_draws_are_what_they_were(dataset):
    """The first actions and the next number of the generator, as they were before there were shares."""
    replay, rng = Replay(SPEC, load_episodes(dataset, FEATURES)), np.random.default_rng(5)
    starts = Starts.of(replay.layout, 2)
    episode_B, t_B = starts.place(np.random.default_rng(5).integers(0, starts.total, 8))
    wanted = [np.asarray(dataset[e]["action"][t], np.float32) for e, t in zip(episode_B, t_B, strict=True)]
    assert np.array_equal(replay.sample(8, rng)["action"], wanted)
    other = np.random.default_rng(5)
    other.integers(0, starts.total, 8)
    assert rng.random() == other.random()


def test_absorbed_demonstrations_are_the_first_to_go(dataset):
    replay = Replay(BatchSpec((), "obs.state"), None, 40)
    replay.absorb(load_episodes(dataset, FEATURES))
    assert replay.online_numbers == [0, 1, 2, 3, 4]
    # An episode without an observation after its last step loses that step, never gains a frame.
    assert replay.layout.lengths_E.tolist() == [3, 5, 5, 7, 7]
    for number in range(8):
        replay.add(online(number, 4), terminated=False)
    assert min(replay.online_numbers) >= 5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="needs episodes of a dataset or room"):
        Replay(SPEC, None, 0)
    replay = Replay(BatchSpec((), "obs.state", n_step=3, whole_windows=True), None, 6)
    with pytest.raises(ConfigError, match="an episode of 8 states does not fit into a capacity of 6"):
        replay.add(online(0, 7), terminated=False)
    replay.add(online(0, 2), terminated=False)
    with pytest.raises(ConfigError, match="no episode has 3 steps"):
        replay.sample(1, np.random.default_rng(0))

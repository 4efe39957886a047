"""Windows: every batch against a loop over single windows, one meaning for every storage, one order for all workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_episode, make_schema, make_spec, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from range_server import serving

import vrl3data
from vrl3data import loader, order, window_spec
from vrl3data.dataset import StoredSample
from vrl3data.delivery import Batches, DeliverySpec
from vrl3data.errors import ConfigError, DamagedError, locate
from vrl3data.order import Bijection, Order, OrderSpec
from vrl3data.sampling import Starts
from vrl3data.workers import WorkerDied
from vrl3data.writer import Writer

CAMERA = "obs.image.top"
EVERYTHING: dict[str, Any] = {
    "frame_stack": 3, "n_step": 2, "discount": 0.9, "action_horizon": 3, "ordered": 3, "ends": True,
    "goals": {"geometric": 1, "uniform": 1, "random": 1, "final": 1},
}  # fmt: skip
LENGTHS = (4, 1, 6, 7, 8, 2)


def write(path: Path, codec: str = "raw", size: int = 12) -> Path:
    """Episodes in several shards; every other one without a final observation, the third and last terminated."""
    with Writer(path, make_spec(make_schema(codec, size), shard_size=20_000)) as writer:
        for number, length in enumerate(LENGTHS):
            ends = {"terminated": int(number in (2, 5))}
            writer.write(make_episode(number, length=length, final=bool(number % 2), size=size, **ends))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("windows") / "set")


@pytest.fixture(scope="module")
def dataset(path: Path) -> vrl3data.Dataset:
    return vrl3data.open(path)


def collect(batches: Batches) -> list[dict[str, np.ndarray]]:
    with batches:
        return [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]


def assert_equal(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value.dtype == second[name].dtype
            assert np.array_equal(value, second[name]), name


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vrl3data-batches")]


def windows_of(batches: list[dict[str, np.ndarray]]) -> Counter[tuple[int, int]]:
    return Counter((int(e), int(t)) for batch in batches for e, t in zip(batch["episode"], batch["step"], strict=True))


def stack(images: np.ndarray, t: int, frames: int, stride: int) -> np.ndarray:
    return np.stack([images[max(0, t - stride * back)] for back in reversed(range(frames))])


def check_window(dataset: vrl3data.Dataset, row: dict[str, Any], options: dict[str, Any]) -> None:
    """One row of a batch against a loop."""
    item, t = dataset[int(row["episode"])], int(row["step"])
    images, rewards, actions = (np.asarray(item[name]) for name in (CAMERA, "reward", "action"))
    frames, stride = options.get("frame_stack", 1), options.get("frame_stride", 1)
    length, last = item.length, len(images) - 1

    def looks(prefix: str, source: vrl3data.Dataset, when: int) -> None:
        assert np.array_equal(row[prefix + CAMERA], stack(np.asarray(source[CAMERA]), when, frames, stride)), prefix
        assert np.array_equal(row[prefix + "obs.state"], source["obs.state"][when]), prefix

    if "sequence" in options:
        for i in range(options["sequence"]):
            assert row["state_mask"][i] == (t + i <= last)
            assert row["step_mask"][i] == (t + i < length)
            assert np.array_equal(row[CAMERA][i], stack(images, min(t + i, last), frames, stride))
            assert np.array_equal(row["action"][i], actions[min(t + i, length - 1)])
        return
    looks("", item, t)
    assert np.array_equal(row["reward"], rewards[t])
    if n := options.get("n_step"):
        dead, gamma = item.meta["terminated"] == 1, options["discount"]
        steps = min(n, (length if dead else last) - t)
        assert steps > 0 and row["mask"]
        looks("next.", item, min(t + steps, last))
        wanted = sum(gamma**k * rewards[t + k] for k in range(steps))
        assert row["return"] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert row["discount"] == pytest.approx(0 if dead and t + steps == length else gamma**steps)
    if chunk := options.get("action_horizon"):
        for i in range(chunk):
            assert row["action_mask"][i] == (t + i < length)
            assert np.array_equal(row["action"][i], actions[min(t + i, length - 1)])
    else:
        assert np.array_equal(row["action"], actions[t])
    if "goals" in options:
        goal, when = int(row["goal.episode"]), int(row["goal.step"])
        looks("goal.", dataset[goal], when)
        if options["goals"] in ("geometric", "uniform", "final"):
            assert goal == row["episode"]
            assert row["goal.mask"] == (t < last)
            assert when > t if t < last else when == t
            assert options["goals"] != "final" or when == last
    if count := options.get("ordered"):
        places = row["ordered.step"].tolist()
        assert row["ordered.mask"] == (last + 1 >= count)
        assert places == sorted(places) and places[0] >= 0 and places[-1] <= last
        assert len(set(places)) == count or not row["ordered.mask"]
        for i, place in enumerate(places):
            assert np.array_equal(row["ordered." + CAMERA][i], stack(images, place, frames, stride))
    if options.get("ends"):
        assert np.array_equal(row["first." + CAMERA], stack(images, 0, frames, stride))
        assert np.array_equal(row["last." + CAMERA], stack(images, last, frames, stride))


OPTIONS = st.fixed_dictionaries(
    {"frame_stack": st.integers(1, 4), "frame_stride": st.integers(1, 3), "seed": st.integers(0, 9)},
    optional={
        "n_step": st.integers(1, 9), "action_horizon": st.integers(1, 9), "ordered": st.integers(1, 4),
        "ends": st.booleans(), "goals": st.sampled_from(["geometric", "uniform", "random", "final"]),
        "shuffle_buffer": st.integers(1, 20), "shuffle_run": st.integers(1, 5), "whole": st.booleans(),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(OPTIONS, st.integers(1, 9))
def test_every_window_of_an_epoch_equals_a_loop(dataset, options, size):
    options = {"discount": 0.9, **options}
    wanted = Counter()
    for position, item in enumerate(dataset):
        known = item.meta["final_observation"] or item.meta["terminated"] == 1
        for t in range(item.length):
            enough = "n_step" not in options or t < item.length - (not known)
            if options.get("whole"):
                enough = enough and t + options.get("n_step", 1) <= item.length - ("n_step" in options and not known)
                enough = enough and t + options.get("action_horizon", 1) <= item.length
            wanted[position, t] += enough
    if not +wanted:
        with pytest.raises(ConfigError, match="no episode is long enough"):
            dataset.windows(size, **options)
        return
    batches = collect(dataset.windows(size, storage="mmap", **options))
    for batch in batches:
        for i in range(len(batch["step"])):
            check_window(dataset, {name: value[i] for name, value in batch.items()}, options)
    assert windows_of(batches) == +wanted


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_sequences_equal_a_loop(dataset, length, frames, whole):
    options = {"sequence": length, "frame_stack": frames}
    batches = collect(dataset.windows(5, whole=whole, **options)) if length <= max(LENGTHS) or not whole else []
    for batch in batches:
        for i in range(len(batch["step"])):
            check_window(dataset, {name: value[i] for name, value in batch.items()}, options)
        assert not whole or batch["step_mask"].all()


def test_states_alone_include_the_last_one(dataset):
    found = windows_of(collect(dataset.windows(4, features=["obs.state"])))
    assert found == Counter((e, t) for e in range(len(dataset)) for t in range(LENGTHS[e] + e % 2))


def test_the_shapes_that_are_promised(dataset):
    batch = next(dataset.windows(4, **EVERYTHING))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items() if name in (
        CAMERA, "next." + CAMERA, "action", "action_mask", "return", "discount", "mask", "ordered." + CAMERA, "episode"
    )} == {
        CAMERA: ((4, 3, 12, 12, 3), "uint8"), "next." + CAMERA: ((4, 3, 12, 12, 3), "uint8"),
        "action": ((4, 3, 2), "float64"), "action_mask": ((4, 3), "bool"), "return": ((4,), "float32"),
        "discount": ((4,), "float32"), "mask": ((4,), "bool"), "ordered." + CAMERA: ((4, 3, 3, 12, 12, 3), "uint8"),
        "episode": ((4,), "int64"),
    }  # fmt: skip


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg:90"])
def test_every_storage_gives_the_same_batches(tmp_path, codec):
    with vrl3data.open(write(tmp_path / "set", codec, 16)) as dataset:
        wanted = collect(dataset.windows(5, storage="ram", **EVERYTHING))
        for storage in ["stream", "cpu", "auto", *(["mmap"] if codec == "raw" else [])]:
            assert_equal(collect(dataset.windows(5, storage=storage, **EVERYTHING)), wanted)
        tiny = collect(dataset.windows(5, storage="stream", cache_bytes=900, workers=2, **EVERYTHING))
        assert_equal(tiny, wanted)


def test_a_device_gives_tensors(dataset):
    batch = next(dataset.windows(4, storage="cpu", n_step=1))
    assert {type(value).__module__ for value in batch.values()} == {"torch"}


@pytest.mark.parametrize(("workers", "kind"), [(1, "thread"), (4, "thread"), (2, "fork"), (4, "fork"), (2, "spawn")])
def test_workers_change_nothing(dataset, workers, kind):
    options = {"seed": 3, "epochs": 2, "shuffle_buffer": 8, "shuffle_run": 2, **EVERYTHING}
    wanted = collect(dataset.windows(4, storage="mmap", **options))
    assert_equal(collect(dataset.windows(4, storage="mmap", workers=workers, worker_kind=kind, **options)), wanted)
    assert not our_threads()


@pytest.mark.parametrize("buffer", [0, 8])
@pytest.mark.parametrize("ending", [{}, {"drop_last": True}, {"pad_last": True}])
def test_two_ranks_with_two_workers_see_every_window_once(dataset, buffer, ending):
    total = sum(LENGTHS)
    seen = []
    for epoch_seed in (0, 1):
        ranks = [
            collect(dataset.windows(3, rank=rank, world=2, workers=2, seed=epoch_seed, shuffle_buffer=buffer,
                                    shuffle_run=2, **ending)) for rank in (0, 1)
        ]  # fmt: skip
        assert len(ranks[0]) == len(ranks[1])
        found = Counter()
        for batch in ranks[0] + ranks[1]:
            valid = batch.get("valid", np.ones(len(batch["step"]), bool))
            found += windows_of([{name: batch[name][valid] for name in ("episode", "step")}])
        sizes = {len(batch["step"]) for rank in ranks for batch in rank}
        if ending.get("drop_last"):
            assert sizes == {3} and max(found.values()) == 1 and found.total() == total // 6 * 6
        else:
            assert found == Counter((e, t) for e in range(len(dataset)) for t in range(LENGTHS[e]))
            assert sizes == {3} if ending else sizes == {3, 2}
        seen.append([batch["step"].tolist() for batch in ranks[0]])
    assert seen[0] != seen[1]


@pytest.mark.parametrize("storage", ["mmap", "ram", "stream", "cpu"])
def test_a_rank_that_is_left_without_windows_gets_an_empty_batch(dataset, storage):
    ranks = [collect(dataset.windows(1, rank=rank, world=29, storage=storage, **EVERYTHING)) for rank in range(29)]
    assert [len(rank) for rank in ranks] == [1] * 29
    sizes = [len(rank[0]["step"]) for rank in ranks]
    assert sorted(sizes)[-2:] == [1, 1] and 0 in sizes
    empty, full = ranks[sizes.index(0)][0], ranks[sizes.index(1)][0]
    assert all(value.shape[1:] == full[name].shape[1:] for name, value in empty.items())


def test_the_global_order_does_not_depend_on_how_ranks_share_it(dataset):
    alone = collect(dataset.windows(4, drop_last=True))
    pair = [collect(dataset.windows(2, rank=rank, world=2, drop_last=True)) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert batch["step"].tolist() == pair[0][step]["step"].tolist() + pair[1][step]["step"].tolist()


def test_epochs_differ_and_repeat_with_the_seed(dataset):
    one = collect(dataset.windows(7, epochs=2, seed=5))
    half = len(one) // 2
    assert windows_of(one[:half]) == windows_of(one[half:])
    assert [b["step"].tolist() for b in one[:half]] != [b["step"].tolist() for b in one[half:]]
    assert_equal(one, collect(dataset.windows(7, epochs=2, seed=5)))
    straight = collect(dataset.windows(50, shuffle=False))[0]
    assert straight["episode"].tolist() == sorted(straight["episode"].tolist())


def test_draws_with_replacement_by_episode(dataset):
    batches = dataset.windows(2000, replacement=True, by="episode", epochs=None, features=["reward"], cameras=[])
    counts = np.bincount(next(batches)["episode"], minlength=6) / 2000
    assert counts == pytest.approx(np.full(6, 1 / 6), abs=0.04)
    with pytest.raises(TypeError, match="endless batches have no length"):
        len(batches)


RESUME = """
import json, sys
import vrl3data
def main():
    path, options, state = json.loads(sys.argv[1])
    with vrl3data.open(path).windows(3, **options) as batches:
        batches.load_state_dict(state)
        print(json.dumps([[b["episode"].tolist(), b["goal.step"].tolist(), float(b["return"].sum())] for b in batches]))
    assert "torch" not in sys.modules
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(("workers", "kind"), [(0, "thread"), (2, "thread"), (2, "spawn")])
def test_a_state_goes_on_in_another_process_where_it_was_taken(path, dataset, workers, kind):
    options = {"seed": 2, "epochs": 2, "n_step": 2, "goals": "geometric"}
    batches = dataset.windows(3, workers=3, storage="ram", **options)
    for _ in range(5):  # in the middle of the first epoch, with more made ahead than handed out
        next(batches)
    state = json.loads(json.dumps(batches.state_dict()))
    assert state["delivered"] == 5
    rest = [[b["episode"].tolist(), b["goal.step"].tolist(), float(b["return"].sum())] for b in batches]
    here = {**options, "workers": workers, "worker_kind": kind, "storage": "mmap"}
    command = [sys.executable, "-c", RESUME, json.dumps([str(path), here, state])]
    if kind == "spawn":
        script = path.parent / "resume.py"
        script.write_text(RESUME)
        command[1:3] = [str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert json.loads(found.stdout) == rest
    assert len(rest) == len(batches) - 5


def test_a_state_of_something_else_is_refused_by_name(tmp_path, dataset):
    state = dataset.windows(3, world=2, seed=1).state_dict()
    with pytest.raises(ConfigError, match="world 2, not 1, seed 1, not 0|seed 1, not 0, world 2, not 1"):
        dataset.windows(3).load_state_dict(state)
    with pytest.raises(ConfigError, match="n_step None, not 3"):
        dataset.windows(3, world=2, seed=1, n_step=3).load_state_dict(state)
    with pytest.raises(ConfigError, match="positions '"):
        dataset.windows(3, world=2, seed=1, positions=[0, 1, 2]).load_state_dict(state)
    with vrl3data.open(write_dataset(tmp_path / "other")) as other, pytest.raises(ConfigError, match="dataset '"):
        other.windows(3, world=2, seed=1).load_state_dict(state)
    with pytest.raises(ConfigError, match="not the state of batches"):
        dataset.windows(3).load_state_dict({"step": 1})
    with pytest.raises(ConfigError, match="version 9, this release reads 1"):
        dataset.windows(3).load_state_dict(state | {"version": 9})
    with pytest.raises(ConfigError, match="delivered: expected a whole number"):
        dataset.windows(3, world=2, seed=1).load_state_dict(state | {"delivered": -1})
    other_rank = dataset.windows(3, world=2, rank=1, seed=1, workers=1, storage="ram")
    other_rank.load_state_dict(state)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"frame_stak": 3}, "unknown option 'frame_stak'; did you mean 'frame_stack'"),
    ({"batch_size": 0}, "batch_size: expected at least 1"),
    ({"epochs": 0}, "epochs: expected at least 1, or None"),
    ({"rank": 2, "world": 2}, "rank: expected 0 to 1, found 2"),
    ({"drop_last": True, "pad_last": True}, "exclude each other"),
    ({"by": "shard"}, "by: expected 'episode' or 'step'"),
    ({"by": "episode"}, "by 'episode' needs replacement=True"),
    ({"replacement": True, "shuffle_buffer": 9}, "replacement draws at random"),
    ({"frame_stack": 0}, "frame_stack: expected at least 1"),
    ({"ordered": -1}, "ordered: expected at least 0"),
    ({"discount": 1.5}, "discount: expected 0 to 1"),
    ({"goal_discount": 1.0}, "goal_discount: expected 0 to below 1"),
    ({"sequence": 3, "n_step": 1}, "leave n_step and action_horizon out"),
    ({"goals": "futur"}, "goals 'futur'"),
    ({"goals": {"final": 0}}, "goals final: expected a weight above 0"),
    ({"features": ["actoin"]}, "no feature 'actoin'; did you mean 'action'"),
    ({"features": ["sim.goal"]}, "has rows 'episode', not step or state"),
    ({"cameras": ["action"]}, "action: expected rows 'state', found 'step'"),
    ({"n_step": 1, "reward": "obs.state"}, "obs.state: expected rows 'step', found 'state'"),
    ({"cameras": [], "features": []}, "no cameras and no features"),
    ({"whole": True, "action_horizon": 50}, "no episode is long enough"),
    ({"drop_last": True, "batch_size": 64}, "28 items do not fill a batch of 64"),
    ({"workers": -1}, "expected workers >= 0"),
    ({"worker_kind": "process"}, "worker_kind 'process'"),
    ({"storage": "mmpa"}, "storage 'mmpa'; did you mean 'mmap'"),
    ({"storage": "cpu", "workers": 1, "worker_kind": "fork"}, "cannot be shared with processes"),
    ({"split": "tets"}, "no split 'tets'"),
    ({"positions": [0, 6]}, "positions: expected 0 to 5, found 0 to 6"),
    ({"positions": [-1]}, "positions: expected 0 to 5, found -1 to -1"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_options_are_refused_by_name(dataset, options, message):
    with pytest.raises(ConfigError, match=message):
        dataset.windows(**{"batch_size": 4, **options})


def test_a_device_that_is_not_there_is_refused(dataset, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="storage 'cuda' needs a GPU"):
        dataset.windows(4, storage="cuda")


def test_names_that_would_collide_are_refused(tmp_path):
    schema = make_schema()
    features = [*schema.features, vrl3data.Feature("step", "int64"), vrl3data.Feature("next.obs.state", "int64")]
    with Writer(tmp_path / "set", make_spec(vrl3data.Schema("episodes", tuple(features), schema.extras))) as writer:
        episode = make_episode(0)
        episode.values["step"] = episode.values["next.obs.state"] = np.arange(5)  # type: ignore[index]
        writer.write(episode)
        writer.finish()
    with vrl3data.open(tmp_path / "set") as dataset:
        for wrong in (["step"], ["next.obs.state", "obs.state"]):
            with pytest.raises(ConfigError, match="has the name of another part of a batch"):
                dataset.windows(2, features=wrong)
        dataset.windows(2, features=["next.obs.state"])


class Fragile:
    """A plan that goes wrong at step 3 in the given way."""

    steps, steps_per_epoch = 8, 8

    def __init__(self, how: str) -> None:
        self.how = how

    def batch(self, step: int) -> dict[str, np.ndarray]:
        if step == 3 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and self.how == "damaged":
            with locate(episode="seven"):
                raise DamagedError("broken")
        return {"step": np.array([step])}

    def identity(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_a_worker_that_dies_is_an_error_of_ours(kind):
    with Batches(Fragile("killed"), DeliverySpec(2, kind)) as batches:
        assert [int(next(batches)["step"][0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(WorkerDied, match="exit code -9 before batch 3"):
            next(batches)


@pytest.mark.parametrize(("workers", "kind"), [(0, "thread"), (2, "thread"), (2, "fork"), (2, "spawn")])
def test_an_error_in_a_worker_arrives_with_its_place_and_never_looks_like_the_end(workers, kind):
    with Batches(Fragile("damaged"), DeliverySpec(workers, kind)) as batches:
        for _ in range(3):
            next(batches)
        for _ in range(2):
            with pytest.raises(DamagedError, match=r"broken \(episode seven\)"):
                next(batches)
    assert batches.delivered == 3


INTERRUPTED = """
import multiprocessing, sys, time
import vrl3data
if __name__ == "__main__":
    batches = vrl3data.open(sys.argv[1]).windows(2, epochs=None, storage="mmap", workers=2, worker_kind=sys.argv[2])
    try:
        with batches:
            next(batches)
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            for batch in batches:
                time.sleep(0.01)
    except KeyboardInterrupt:
        assert not multiprocessing.active_children()
        print("ended", flush=True)
"""


@pytest.mark.parametrize(("kind", "end"), [("fork", signal.SIGINT), ("spawn", signal.SIGINT), ("fork", signal.SIGKILL)])
def test_workers_end_with_ctrl_c_and_with_their_parent(path, tmp_path, kind, end):
    script = tmp_path / "run.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(path), kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    children = [int(word) for word in process.stdout.readline().split()]
    assert len(children) == 2
    os.kill(process.pid, end) if end == signal.SIGKILL else os.killpg(process.pid, end)
    output, errors = process.communicate(timeout=60)
    assert not errors
    assert end == signal.SIGKILL or output == "ended\n"
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() and "Z" not in _state(child) for child in children):
            return
        threading.Event().wait(0.1)
    pytest.fail("a worker outlived its parent")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


FLAT = """
import resource, sys, tracemalloc
import vrl3data
batches = vrl3data.open(sys.argv[1]).windows(8, epochs=10, storage=sys.argv[2], workers=2, n_step=2, goals="random",
                                             cache_bytes=20_000)
tracemalloc.start()
peaks = []
for _ in range(10):
    tracemalloc.reset_peak()
    for _ in range(batches.steps_per_epoch):
        next(batches)
    peaks.append(tracemalloc.get_traced_memory()[1])
print(max(peaks[1:3]), max(peaks[3:]))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("storage", ["mmap", "stream"])
def test_memory_stays_flat_over_ten_epochs(path, storage):
    command = [sys.executable, "-c", FLAT, str(path), storage]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    early, late = map(int, found.stdout.split())
    assert late < 1.1 * early + 50_000


def test_the_cache_keeps_to_its_limit_and_is_used(tmp_path, monkeypatch):
    with vrl3data.open(write(tmp_path / "set", "png", 16)) as dataset:
        kept: list[loader.UnitCache] = []
        monkeypatch.setattr(loader, "UnitCache", lambda limit: kept.append(Watched(limit)) or kept[-1])
        collect(dataset.windows(4, storage="stream", cache_bytes=5000, epochs=3))
        assert 0 < kept[0].highest <= 5000
        misses = kept[0].misses
        collect(dataset.windows(4, storage="stream", epochs=3))
        assert kept[1].misses < misses / 2


class Watched(loader.UnitCache):
    highest, misses = 0, 0

    def put(self, key: Any, unit: np.ndarray) -> None:
        super().put(key, unit)
        self.misses += 1
        self.highest = max(self.highest, self.bytes)
        assert self.bytes == sum(value.nbytes for value in self._units.values())


def test_streamed_rows_that_are_damaged_are_found(tmp_path):
    path = write(tmp_path / "set", "png", 16)
    with vrl3data.open(path) as dataset:
        shard, offset = dataset.place(2)[1], int(dataset.index[f"{CAMERA}.pngs.offset"].to_numpy()[2])
    data = bytearray((path / "data" / shard).read_bytes())
    data[offset + 60] ^= 255
    (path / "data" / shard).write_bytes(bytes(data))
    with vrl3data.open(path) as dataset, pytest.raises(DamagedError, match="do not have the hash"):
        collect(dataset.windows(4, storage="stream", workers=2))


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_remote_dataset_is_streamed_in_few_requests(tmp_path, codec, monkeypatch):
    here = write(tmp_path / "web" / "set", codec, 16)
    options = {"seed": 1, "n_step": 2, "frame_stack": 2}
    with vrl3data.open(here) as dataset:
        wanted = collect(dataset.windows(6, **options))
    requests = []
    for prefetch in (True, False):
        with serving(here.parent) as served, vrl3data.open(f"{served.url}/set") as dataset:
            assert dataset.remote
            if not prefetch:
                monkeypatch.setattr(vrl3data.Dataset, "prefetch", lambda *_: None)
            batches = dataset.windows(6, workers=2 * prefetch, **options)
            before = dataset.fetched.requests
            assert_equal(collect(batches), wanted)
            requests.append(dataset.fetched.requests - before)
            with pytest.raises(ConfigError, match="mmap|mapped|coded as png"):
                dataset.windows(6, storage="mmap", cameras=[CAMERA])
    assert requests[0] < 0.7 * requests[1]


@pytest.mark.parametrize("storage", ["ram", "mmap", "stream"])
def test_fewer_rows_than_promised_are_damage(dataset, monkeypatch, storage):
    real = StoredSample.rows
    monkeypatch.setattr(StoredSample, "row_count", lambda self, _: self.length - 1)
    monkeypatch.setattr(StoredSample, "rows", lambda self, feature, *span: real(self, feature, *span)[:1])
    with pytest.raises(DamagedError, match=r"expected \d+ rows|promises \d+ rows"):
        collect(dataset.windows(4, storage=storage))


def test_auto_takes_what_fits(tmp_path, dataset, monkeypatch):
    spec = window_spec.resolved(window_spec.WindowSpec(4), dataset.schema)
    assert window_spec.choose_storage(dataset, spec) == "mmap"
    with vrl3data.open(write(tmp_path / "set", "png", 16)) as coded:
        assert window_spec.choose_storage(coded, spec) == "ram"
        monkeypatch.setattr(window_spec, "physical_memory", lambda: 1000)
        assert window_spec.choose_storage(coded, spec) == "stream"


@given(st.integers(1, 5000), st.integers(0, 2**63))
def test_the_bijection_is_one(total, key):
    found = Bijection(total, (key,))(np.arange(total))
    assert np.array_equal(np.sort(found), np.arange(total))


def test_large_sets_are_shuffled_without_memory_and_well(monkeypatch):
    total = 3 * order.PERMUTED
    large = Order(OrderSpec(1000, seed=1), Starts(np.array([total])))
    first = np.concatenate([large.numbers(step)[0] for step in range(100)])
    assert len(set(first.tolist())) == len(first)
    assert not large._kept
    # 100,000 positions over 16 parts: chi-square of 15 degrees of freedom is below 44 in 9,999 of 10,000 cases.
    for value in (first * 16 // total, (np.diff(first) % total) * 16 // total):
        counts = np.bincount(value, minlength=16)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 44
    monkeypatch.setattr(order, "PERMUTED", 10)
    small = Order(OrderSpec(7, seed=1, epochs=1), Starts(np.array([100])))
    assert sorted(np.concatenate([small.numbers(step)[0] for step in range(small.steps or 0)])) == list(range(100))


def test_a_shuffle_buffer_bounds_what_is_read_together():
    total, buffer, run = 10_000, 1024, 64
    blocks = Order(OrderSpec(64, shuffle_buffer=buffer, shuffle_run=run), Starts(np.array([total])))
    window = np.concatenate([blocks.numbers(step)[0] for step in range(buffer // 64)])
    places = np.unique(window // run)
    assert len(places) <= 2 * buffer // run
    assert np.ptp(window) > total / 2
    batch = blocks.numbers(3)[0]
    assert len(np.unique(batch // run)) > 20
    everything = np.concatenate([blocks.numbers(step)[0] for step in range(blocks.steps or 0)])
    assert np.array_equal(np.sort(everything), np.arange(total))


def test_torch_loaders_give_the_same_order(dataset):
    from torch.utils.data import DataLoader

    options = {"n_step": 1, "storage": "mmap"}
    wanted = collect(dataset.windows(4, **options))
    batches = dataset.windows(4, **options)
    next(batches)
    for workers in (0, 2):
        found = list(DataLoader(batches.as_torch_dataset(), batch_size=None, num_workers=workers))
        assert_equal([{name: np.asarray(value) for name, value in batch.items()} for batch in found], wanted[1:])


def test_images_have_no_windows(tmp_path: Path) -> None:
    from conftest import make_pictures

    vrl3data.convert("imagenet", [make_pictures(tmp_path / "pictures")], tmp_path / "set")
    with vrl3data.open(tmp_path / "set") as dataset, pytest.raises(ConfigError, match=r"those have ds\.images"):
        dataset.windows(4)


def iterate(batches: Batches) -> Iterator[int]:
    return (len(batch["step"]) for batch in batches)


def test_iteration_can_stop_and_go_on(dataset):
    with dataset.windows(10, workers=2) as batches:
        sizes = [next(iterate(batches))]
        assert batches.epoch == 0
        batches.close()
        assert not our_threads()
        assert [*sizes, *iterate(batches)] == [10, 10, 8]
        assert batches.epoch == 1 and not list(batches)

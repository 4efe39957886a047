"""The four Adroit tasks for learning online: physics, rules, pictures, and action repeat."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_demonstrations

import vrl3data
from converters.adroit.converter import AdroitConverter, AdroitOptions
from vrl3data.envs import ENVS, gl
from vrl3data.envs.adroit import TASKS, AdroitScene
from vrl3data.envs.adroit_env import AdroitEnv, Door, Hammer, Pen, Relocate
from vrl3data.errors import ConfigError, SourceError
from vrl3data.record import Recorder, RecordOptions

CLASSES: dict[str, type[AdroitEnv]] = {"door": Door, "hammer": Hammer, "pen": Pen, "relocate": Relocate}


@pytest.fixture(scope="module")
def envs() -> Iterator[dict[str, AdroitEnv]]:
    """One environment with VRL3's rules per task: a GL context is not for free."""
    made = {task: cls(image_size=24, render="fast") for task, cls in CLASSES.items()}
    yield made
    for env in made.values():
        env.close()


def actions(env: Any, count: int, seed: int = 0) -> np.ndarray:
    """Slow random motion (count, A), some of it outside the bounds."""
    rng, action_A = np.random.default_rng(seed), np.zeros(env.action_space.shape)
    rows = []
    for _ in range(count):
        action_A = 0.9 * action_A + rng.normal(0, 0.4, action_A.shape)
        rows.append(action_A.astype(np.float32))
    return np.array(rows)


@pytest.mark.parametrize("task", TASKS)
def test_spaces(envs: dict[str, AdroitEnv], task: str) -> None:
    env, facts = envs[task], TASKS[task]
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert list(obs) == list(env.features) == [*(f"image.{camera}" for camera in facts.cameras), "proprio"]
    assert list(env.features.values()) == [*(f"obs.image.{camera}" for camera in facts.cameras), "obs.proprio"]
    assert env.cameras == facts.cameras
    assert all(obs[f"image.{camera}"].shape == (24, 24, 3) for camera in env.cameras)
    assert np.array_equal(env.render(), np.concatenate([obs[f"image.{camera}"] for camera in env.cameras], axis=1))
    assert info == {"goal_achieved": False, "is_success": False}
    assert env.action_space.shape == (facts.action_dim,)
    assert (env.dt, env.max_steps, env.task) == (0.01, facts.horizon, f"{task}-v0")
    assert env.renderer.startswith("mujoco ") and env.renderer.endswith(", fast")
    env.step(env.action_space.sample() * 0 + 0.5)
    joints = [env.sim_state()["sim.qpos"][env._model.joint(name).qposadr[0]] for name in ("WRJ1", "THJ0")]
    assert env.observe()["proprio"].shape == (24,)
    assert np.allclose(env.observe()["proprio"][[0, -1]], joints) and np.abs(joints).min() > 1e-4


def test_the_table_has_them() -> None:
    for task, cls in CLASSES.items():
        assert ENVS[f"adroit-{task}"] == f"{cls.__module__}:{cls.__name__}"


def gymnasium_env(task: str) -> Any:
    gl.load_mujoco()
    module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
    return getattr(module, f"AdroitHand{task.capitalize()}Env")()


@pytest.mark.parametrize("task", TASKS)
def test_it_moves_and_rewards_as_gymnasium_does(task: str) -> None:
    """The same scene from a seed, the same states to the bit, the same dense rewards."""
    theirs = gymnasium_env(task)
    ours = CLASSES[task](image_size=16, render="fast", rewards="gymnasium")
    assert ours.max_steps == 200 and ours.reward_scale == 1
    for seed in (3, 4):
        obs_D, _ = theirs.reset(seed=seed)
        ours.reset(seed=seed)
        assert np.allclose(ours.state, obs_D, rtol=0, atol=1e-14)
        for action_A in actions(ours, 20, seed):
            obs_D, reward, _, _, info = theirs.step(action_A)
            our_reward, terminated, truncated, our_info = ours.advance(action_A)
            assert np.array_equal(ours.sim_state()["sim.qpos"], theirs.data.qpos)
            assert np.array_equal(ours.sim_state()["sim.qvel"], theirs.data.qvel)
            assert np.allclose(ours.state, obs_D, rtol=0, atol=1e-12)
            assert our_reward == pytest.approx(reward, abs=1e-12)
            assert our_info["goal_achieved"] == bool(info["success"])
            assert not terminated and not truncated
    ours.close()


def at_goal(env: AdroitEnv) -> dict[str, np.ndarray]:
    """A state in which the task is done; the object is at rest or nearly so."""
    env.reset(seed=0)
    state = env.sim_state()
    if env.task_name == "door":
        state["sim.qpos"][28] = 1.57
    elif env.task_name == "hammer":
        state["sim.qpos"][26] = 0.0905
    elif env.task_name == "pen":
        state["sim.desired_orien"] = env._model.body("Object").quat.copy()
    else:
        state["sim.target_pos"] = state["sim.obj_pos"].copy()
    return state


@pytest.mark.parametrize(("task", "ceiling"), [("door", 20), ("hammer", 100), ("pen", 50), ("relocate", 30)])
def test_vrl3_rewards_are_scaled_to_one(envs: dict[str, AdroitEnv], task: str, ceiling: float) -> None:
    env = envs[task]
    assert env.reward_scale == pytest.approx(1 / ceiling)
    state = at_goal(env)
    far, _, _, info = env.advance(env.action_space.sample() * 0)
    assert far <= 0 and not info["goal_achieved"]
    env.set_sim_state(state)
    reward, _, _, info = env.advance(env.action_space.sample() * 0)
    assert 0.98 < reward <= 1
    assert info["goal_achieved"]


@pytest.mark.parametrize(("task", "needed"), [("hammer", 25), ("pen", 20)])
def test_success_is_more_than_so_many_steps_at_the_goal(envs: dict[str, AdroitEnv], task: str, needed: int) -> None:
    env = envs[task]
    env.set_sim_state(at_goal(env))
    still_A = np.zeros(env.action_space.shape, np.float32)
    infos = []
    for _ in range(needed + 2):
        if task == "pen":  # nobody holds it, so the target turns with it
            env._model.body("target").quat[:] = env._data.body("Object").xquat
        infos.append(env.advance(still_A)[3])
    held = np.cumsum([info["goal_achieved"] for info in infos])
    assert [info["is_success"] for info in infos] == (held > needed).tolist()
    assert infos[-1]["is_success"]
    env.reset(seed=1)
    assert not env.advance(still_A)[3]["is_success"]  # the count begins anew


def test_gymnasiums_success_is_any_step_at_the_goal() -> None:
    env = Hammer(image_size=16, render="fast", rewards="gymnasium")
    env.set_sim_state(at_goal(env))
    assert env.advance(np.zeros(26, np.float32))[3] == {"goal_achieved": True, "is_success": True}
    env.close()


def test_a_dropped_pen_ends_the_episode_under_vrl3s_rules(envs: dict[str, AdroitEnv]) -> None:
    plain = Pen(image_size=16, render="fast", rewards="gymnasium")
    for env, ends in ((envs["pen"], True), (plain, False)):
        env.reset(seed=0)
        state = env.sim_state()
        assert not env.advance(np.zeros(24, np.float32))[1]
        state["sim.qpos"][24:27] = (0.3, 0, -0.3)  # beside the hand
        env.set_sim_state(state)
        fallen = [env.advance(np.zeros(24, np.float32)) for _ in range(30)]
        assert env.state[26] < 0.075
        assert fallen[-1][1] is ends
    plain.close()


def test_the_step_limit_truncates() -> None:
    env = Door(image_size=16, max_steps=3, render="fast")
    for _ in range(2):
        env.reset(seed=0)
        assert [env.advance(np.zeros(28, np.float32))[1:3] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]
    env.close()


def test_vrl3_fixes_the_height_of_relocates_target(envs: dict[str, AdroitEnv]) -> None:
    plain = Relocate(image_size=16, render="fast", rewards="gymnasium")
    for seed in range(3):
        envs["relocate"].reset(seed=seed)
        plain.reset(seed=seed)
        ours_3, theirs_3 = envs["relocate"].sim_state()["sim.target_pos"], plain.sim_state()["sim.target_pos"]
        assert ours_3[2] == 0.25 != theirs_3[2]
        assert np.array_equal(ours_3[:2], theirs_3[:2])
    plain.close()


EPISODE = """
import hashlib, sys
import numpy as np
from test_adroit_env import CLASSES, episode
task, before = sys.argv[1], int(sys.argv[2])
env = CLASSES[task](image_size=24, render="fast")
for seed in range(before):
    episode(env, seed)
print(episode(env, 7))
"""


def episode(env: AdroitEnv, seed: int) -> str:
    """A hash of everything that an agent sees in six steps, and of the simulator's state."""
    seen = hashlib.sha256()
    obs, _ = env.reset(seed=seed)
    for action_A in actions(env, 6, seed):
        obs, reward, *_ = env.step(action_A)
        for part in (*obs.values(), np.float64(reward), *env.sim_state().values()):
            seen.update(part.tobytes())
    return seen.hexdigest()


@pytest.mark.parametrize("task", ["hammer", "pen"])
def test_same_seed_same_episode(envs: dict[str, AdroitEnv], task: str) -> None:
    """After other episodes, in another process, and not with another seed."""
    first = episode(envs[task], 7)
    assert episode(envs[task], 8) != first
    assert episode(envs[task], 7) == first
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", EPISODE, task, "2"], env=environment, capture_output=True, text=True)
    assert other.stdout.strip() == first, other.stderr


@pytest.mark.parametrize("task", TASKS)
def test_a_reset_leaves_nothing_behind(envs: dict[str, AdroitEnv], task: str) -> None:
    """Not even the solver's warm start, which could change the last digit of the next step."""
    env = envs[task]
    starts = []
    for _ in range(2):
        env.reset(seed=7)
        starts.append(env._data.qacc_warmstart.copy())
        for action_A in actions(env, 30):
            env.advance(action_A)
    assert np.array_equal(*starts)


def test_advance_moves_as_step_does(envs: dict[str, AdroitEnv]) -> None:
    """So an episode can be gone back to by its seed and its actions, without drawing."""
    env = envs["relocate"]
    env.reset(seed=2)
    moves = actions(env, 5)
    stepped = [env.step(action_A) for action_A in moves]
    env.reset(seed=2)
    advanced = [env.advance(action_A) for action_A in moves]
    assert [row[1:] for row in stepped] == advanced
    for key, value in env.observe().items():
        assert np.array_equal(value, stepped[-1][0][key])


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_of_the_moment_after_the_step(envs: dict[str, AdroitEnv], task: str) -> None:
    env = envs[task]
    obs, _ = env.reset(seed=1)
    for action_A in actions(env, 8, 1):
        obs, *_ = env.step(action_A)
    state = env.sim_state()
    env.reset(seed=5)
    assert not np.array_equal(env.render(), np.concatenate([obs[f"image.{name}"] for name in env.cameras], axis=1))
    env.set_sim_state(state)
    for key, value in env.observe().items():
        assert np.array_equal(value, obs[key])


def assert_drawn_alike(env: AdroitEnv, made: Any, rows: list[int]) -> None:
    """A converted demonstration's states, set into the environment, give its frames and joints."""
    scene = {
        name: made.values[name][0] for name in made.values if name.startswith("sim.") and len(made.values[name]) == 1
    }
    for row in rows:
        env.set_sim_state({**scene, "sim.qpos": made.values["sim.qpos"][row], "sim.qvel": made.values["sim.qvel"][row]})
        for key, value in env.observe().items():
            feature = env.features[key]
            assert np.array_equal(value, made.values[feature][row]), (row, feature)
            assert value.dtype == made.values[feature].dtype


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_are_drawn_alike(envs: dict[str, AdroitEnv], tmp_path: Path, task: str) -> None:
    source = make_demonstrations(tmp_path / "demos.pickle", task, count=1)
    converter = AdroitConverter([source], AdroitOptions(image_size=24, render="fast"))
    made = converter.read(next(iter(converter.plan().units)))
    converter.close()
    assert_drawn_alike(envs[task], made, [0, 2])


@pytest.mark.realdata
@pytest.mark.parametrize("render", ["exact", "fast"])
def test_human_demonstrations_are_drawn_alike(real_data: Path, monkeypatch: pytest.MonkeyPatch, render: Any) -> None:
    rows = [0, 150]
    monkeypatch.setattr(AdroitConverter, "_frames", lambda _, scene, qpos_TQ: some_frames(scene, qpos_TQ, rows))
    options = AdroitOptions(render=render)
    converter = AdroitConverter([real_data / "adroit" / "door-v0_demos.pickle"], options)
    made = converter.read(list(converter.plan().units)[11])
    converter.close()
    env = Door(render=render)
    assert_drawn_alike(env, made, rows)
    env.close()


def some_frames(scene: AdroitScene, qpos_TQ: np.ndarray, rows: list[int]) -> dict[str, np.ndarray]:
    """The converter's frames of a few rows; the others stay black."""
    frames = np.zeros((len(qpos_TQ), 84, 84, 3), np.uint8)
    for row in rows:
        frames[row] = scene.render(qpos_TQ[row])["top"]
    assert frames[rows[0]].mean() > 20 and not np.array_equal(frames[rows[0]], frames[rows[1]])
    return {"obs.image.top": frames}


def test_what_is_recorded_has_the_converters_names(tmp_path: Path) -> None:
    env = Door(image_size=16, max_steps=3, render="fast")
    with Recorder(env, tmp_path / "set", RecordOptions(renderer=env.renderer)) as recorder:
        recorder.reset(seed=0)
        for action_A in actions(env, 3):
            recorder.step(action_A)
    with vrl3data.open(tmp_path / "set") as dataset:
        assert set(env.features.values()) <= set(dataset.schema.names)
        assert {"sim.qpos", "sim.qvel", "sim.door_body_pos"} <= set(dataset.schema.names)
        assert dataset[0]["timestamp"].tolist() == [0, 10_000_000, 20_000_000, 30_000_000]
        assert dataset[0].meta["success"] == 0


def test_wrong_arguments(envs: dict[str, AdroitEnv]) -> None:
    with pytest.raises(ConfigError, match="unknown reward variant 'vlr3'; did you mean 'vrl3'"):
        Door(rewards="vlr3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown render profile 'fats'; did you mean 'fast'"):
        Door(render="fats")
    with pytest.raises(ConfigError, match="door has no camera 'cam1'"):
        Door(cameras=["cam1"])
    with pytest.raises(ConfigError, match="expected each camera once, found top, top"):
        Door(cameras=["top", "top"])
    with pytest.raises(ConfigError, match="expected a step limit of at least 1, found 0"):
        Door(max_steps=0)
    with pytest.raises(ConfigError, match="expected an image size of at least 1 pixel, got 0"):
        Door(image_size=0)
    fresh = Door(image_size=16, render="fast", cameras=["vil_camera"])
    assert fresh.cameras == ("vil_camera",)
    with pytest.raises(ConfigError, match="call reset before the first step"):
        fresh.step(np.zeros(28, np.float32))
    fresh.close()
    env = envs["door"]
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"expected 28 finite actions, found shape \(26,\)"):
        env.step(np.zeros(26, np.float32))
    with pytest.raises(ConfigError, match="expected 28 finite actions"):
        env.step(np.full(28, np.nan, np.float32))
    state = env.sim_state()
    with pytest.raises(SourceError, match="the initial state has no 'door_body_pos'"):
        env.set_sim_state({name: value for name, value in state.items() if name != "sim.door_body_pos"})
    with pytest.raises(SourceError, match="expected 30 finite numbers in sim.qvel, found none"):
        env.set_sim_state({"sim.qpos": state["sim.qpos"]})
    with pytest.raises(SourceError, match=r"expected 30 finite numbers in sim.qpos, found \(3,\)"):
        env.set_sim_state({**state, "sim.qpos": np.zeros(3)})


def test_pictures_stand_upright() -> None:
    """The hand is in the upper half of door's top view, the red frame in the lower."""
    env = Door(render="fast")
    image_HWC = env.reset(seed=0)[0]["image.top"].astype(int)
    env.close()
    red, green, blue = image_HWC.transpose(2, 0, 1)
    hand = (red > 150) & (red > green + 10) & (green > blue + 20) & (green > 120)
    post = (red > 120) & (green < 40) & (blue < 40)
    assert hand[:42].sum() > 30 > hand[42:].sum()
    assert post[42:].sum() > 10 > post[:42].sum()

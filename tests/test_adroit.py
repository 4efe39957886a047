"""Adroit scenes, states and rewards against gymnasium-robotics' own environments."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from vrl3data.envs import gl
from vrl3data.envs.adroit import (
    TASKS,
    AdroitScene,
    build_model,
    camera_names,
    detect_task,
    rewards,
    success,
    task_named,
)
from vrl3data.envs.adroit_state import Array, rotation_from_xyz, xyz_from_rotation
from vrl3data.errors import ConfigError, MissingExtra, SourceError

# Joints that no observation shows: the ball's rotation. The pen's spin is integrated, so only near.
UNSEEN = {"relocate": [33, 34, 35], "pen": [29]}


def gymnasium_env(task: str) -> Any:
    gl.load_mujoco()
    module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
    return getattr(module, f"AdroitHand{task.capitalize()}Env")()


def wander(env: Any, steps: int, *, forward: bool) -> dict[str, Array]:
    """Random slow motion from a seeded reset; `forward` removes the lag of recorded positions."""
    rng = np.random.default_rng(5)
    obs_D, _ = env.reset(seed=5)
    action_A = np.zeros(env.action_space.shape)
    rows: dict[str, list[Any]] = {"obs": [obs_D], "qpos": [], "qvel": [], "reward": [], "goal": []}
    for _ in range(steps):
        rows["qpos"].append(env.data.qpos.copy())
        rows["qvel"].append(env.data.qvel.copy())
        action_A = np.clip(0.9 * action_A + rng.normal(0, 0.2, action_A.shape), -1, 1)
        obs_D, reward, _, _, info = env.step(action_A)
        if forward:
            gl.load_mujoco().mj_forward(env.model, env.data)
            obs_D = env._get_obs()
        rows["obs"].append(obs_D)
        rows["reward"].append(reward)
        rows["goal"].append(info["success"])
    return {name: np.array(values[:steps]) for name, values in rows.items()}


@pytest.mark.parametrize("task", TASKS)
def test_table_fits_model(task: str) -> None:
    facts, model = TASKS[task], build_model(task)
    assert (model.nq, model.nv, model.nu) == (facts.qpos_dim, facts.qpos_dim, facts.action_dim)
    assert set(facts.cameras) <= set(camera_names(model))
    joints = [model.joint(index).name for index in range(model.nq)][facts.sensor]
    assert (joints[0], joints[-1], len(joints)) == ("WRJ1", "THJ0", 24)


@pytest.mark.parametrize("task", TASKS)
def test_model_moves_as_gymnasium_does(task: str) -> None:
    env = gymnasium_env(task)
    for look in ("vrl3", "gymnasium"):
        model = build_model(task, look)
        assert np.array_equal(model.actuator_gainprm, env.model.actuator_gainprm)
        assert np.array_equal(model.actuator_biasprm, env.model.actuator_biasprm)
    assert camera_names(model) == camera_names(env.model)
    scene = AdroitScene(task)
    path = wander(env, 10, forward=False)
    env.reset(seed=5)
    scene.set_scene({name: value.copy() for name, value in env.get_env_state().items()})
    env.do_simulation(env.act_mean, 5)
    scene.data.ctrl[:] = env.act_mean
    gl.load_mujoco().mj_step(scene.model, scene.data, nstep=5)
    assert np.array_equal(scene.data.qpos, env.data.qpos)
    assert not np.array_equal(scene.data.qpos, path["qpos"][0])


def test_looks() -> None:
    pen = build_model("pen")
    assert np.allclose(pen.camera("vil_camera").pos, (0, -0.8, 0.8))
    assert np.allclose(build_model("pen", "gymnasium").camera("vil_camera").pos, (0, -1.2, 1.2))
    assert pen.geom("pen").rgba[3] == pen.geom("target").rgba[3] == 1
    assert np.allclose(pen.cam_fovy, 45)
    relocate = build_model("relocate")
    assert not relocate.geom_rgba[relocate.geom_bodyid == relocate.body("table").id].any()
    assert not relocate.light_castshadow.any()


@pytest.mark.parametrize("task", TASKS)
def test_reconstruct_finds_the_true_state(task: str) -> None:
    env = gymnasium_env(task)
    env.reset(seed=5)
    init_state = {name: value.copy() for name, value in env.get_env_state().items()}
    path = wander(env, 30, forward=True)
    scene = AdroitScene(task)
    scene.set_scene(init_state)
    states = scene.reconstruct(path["obs"])
    seen = np.setdiff1d(np.arange(scene.model.nq), UNSEEN.get(task, []))
    assert np.abs(path["qpos"][-1] - path["qpos"][0]).max() > 0.1
    assert np.abs(states.qpos_TQ - path["qpos"])[:, seen].max() < 1e-6
    assert states.error_T.max() < 1e-6
    if task == "pen":
        assert np.abs(states.qpos_TQ - path["qpos"])[:, 29].max() < 0.05
        assert np.array_equal(states.qvel_TQ[:, 24:], path["qvel"][:, 24:])
    assert np.allclose(states.qvel_TQ[0, :20], (path["qpos"][1] - path["qpos"][0])[:20] / 0.01)
    if task != "pen":
        assert np.array_equal(states.qvel_TQ[-1, :20], states.qvel_TQ[-2, :20])


@pytest.mark.parametrize("task", ["hammer", "pen"])
def test_angles_keep_their_branch(task: str) -> None:
    """Past a quarter turn of the second hinge and a full turn of the others."""
    env = gymnasium_env(task)
    env.reset(seed=1)
    scene = AdroitScene(task)
    scene.set_scene(env.get_env_state())
    speed_3 = np.array([2.0, 1.1, 2.5])
    truth_T3 = np.arange(400)[:, None] * 0.01 * speed_3
    obs = []
    for angles_3 in truth_T3:
        qpos_Q, qvel_Q = np.zeros(env.model.nq), np.zeros(env.model.nq)
        qpos_Q[-3:], qvel_Q[-3:] = angles_3, speed_3
        env.set_state(qpos_Q, qvel_Q)
        obs.append(env._get_obs())
    states = scene.reconstruct(np.array(obs))
    assert np.abs(states.qpos_TQ[:, -3:] - truth_T3).max() < 1e-6
    assert np.allclose(states.qvel_TQ[:, -3:], speed_3)


def test_one_step_episode_has_no_velocity() -> None:
    env = gymnasium_env("door")
    obs_D, _ = env.reset(seed=0)
    scene = AdroitScene("door")
    scene.set_scene(env.get_env_state())
    states = scene.reconstruct(obs_D[None])
    assert states.qvel_TQ.shape == (1, 30)
    assert not states.qvel_TQ.any()
    assert np.allclose(states.object_pos_T3, obs_D[None, 32:35])


def test_rotation_round_trip() -> None:
    angles_T3 = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    rotations_T33 = rotation_from_xyz(angles_T3)
    assert np.allclose(rotations_T33 @ rotations_T33.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(xyz_from_rotation(rotations_T33), angles_T3)


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_reward(task: str) -> None:
    env = gymnasium_env(task)
    env.reset(seed=5)
    scene = AdroitScene(task)
    scene.set_scene(env.get_env_state())
    path = wander(env, 40, forward=False)
    reward_T, goal_T = rewards(task, "gymnasium", path["obs"], scene.reconstruct(path["obs"]))
    assert reward_T.shape == goal_T.shape == (40,)
    assert reward_T.dtype == np.float64
    assert np.abs(reward_T - path["reward"])[:-1].max() < 0.1  # velocities are differences
    assert np.array_equal(goal_T[:-1], path["goal"][:-1])


def test_gymnasium_reward_bonuses() -> None:
    """At the goal, where wandering does not lead."""
    obs_TD = np.zeros((2, 45))
    obs_TD[:, 26] = 0.2
    obs_TD[:, 33:39] = [0, 0, 1, 0, 0, 1]
    reward_T, goal_T = rewards("pen", "gymnasium", obs_TD)
    assert reward_T.tolist() == [61, 61]
    assert goal_T.all()
    obs_TD[:, 26] = 0.05
    assert rewards("pen", "gymnasium", obs_TD)[0].tolist() == [56, 56]


def observation(task: str, **entries: float) -> Array:
    """One observation as an episode of two equal steps; `o28=1.4` sets entry 28."""
    obs_TD = np.zeros((2, TASKS[task].observation_dim))
    for name, value in entries.items():
        obs_TD[:, int(name[1:])] = value
    return obs_TD


@pytest.mark.parametrize(
    ("task", "entries", "reward", "achieved"),
    [
        ("door", {"o28": 0.0}, -0.1 * 1.57**2, False),
        ("door", {"o28": 0.57}, -0.1 + 2, False),
        ("door", {"o28": 1.38}, -0.1 * 0.19**2 + 20, False),
        ("door", {"o28": 1.57}, 20, True),
        ("hammer", {"o26": 0.0}, -0.91, False),
        ("hammer", {"o26": 0.076}, -0.15 + 25, False),
        ("hammer", {"o26": 0.086}, -0.05 + 100, True),
        ("pen", {"o33": 1, "o36": 1}, 50, True),
        ("pen", {"o33": 1, "o36": 1, "o40": 0.08}, 0, True),
        ("pen", {"o33": 1, "o36": 0.9}, 0, False),
        ("relocate", {"o37": 0.11}, 0, False),
        ("relocate", {"o37": 0.09}, 10, True),
        ("relocate", {"o37": 0.04}, 30, True),
    ],
)
def test_vrl3_reward(task: str, entries: dict[str, float], reward: float, achieved: bool) -> None:
    reward_T, goal_T = rewards(task, "vrl3", observation(task, **entries))
    assert np.allclose(reward_T, reward)
    assert goal_T.tolist() == [achieved, achieved]


def test_reward_is_of_the_observation_that_follows() -> None:
    obs_TD = np.zeros((3, 39))
    obs_TD[:, 28] = [0.0, 0.5, 1.5]
    _, goal_T = rewards("door", "vrl3", obs_TD)
    assert goal_T.tolist() == [False, True, True]


def test_success() -> None:
    achieved_T = np.arange(40) < 25
    assert not success("door", "vrl3", achieved_T)
    assert success("pen", "vrl3", achieved_T)
    assert success("door", "gymnasium", achieved_T)
    assert not success("door", "gymnasium", np.zeros(40, dtype=bool))
    with pytest.raises(ConfigError, match="unknown reward variant"):
        success("door", "dense", achieved_T)  # type: ignore[arg-type]


def test_detect_task() -> None:
    assert detect_task(39, 28, ["qpos", "qvel", "door_body_pos"]) == "door"
    assert detect_task(39, 30, ["obj_pos", "target_pos", "palm_pos"]) == "relocate"
    assert detect_task(39, 30, ["door_body_pos"]) is None
    assert detect_task(10, 2, []) is None


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="unknown Adroit task 'doors'; did you mean 'door'"):
        task_named("doors")
    with pytest.raises(ConfigError, match="unknown look"):
        build_model("door", "rrl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'cam1' in the vrl3 look; there are: fixed, vil_camera, top"):
        AdroitScene("door", cameras=("cam1",))
    with pytest.raises(ConfigError, match="no camera 'top' in the gymnasium look"):
        AdroitScene("door", look="gymnasium")
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        AdroitScene("door", image_size=0)
    with pytest.raises(ConfigError, match="unknown render profile 'fats'; did you mean 'fast'"):
        AdroitScene("door", profile="fats")
    with pytest.raises(ConfigError, match="unknown reward variant"):
        rewards("door", "dense", observation("door"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the states of 2 steps"):
        rewards("door", "gymnasium", observation("door"))


def test_wrong_sources() -> None:
    scene = AdroitScene("door")
    with pytest.raises(ConfigError, match="call set_scene"):
        scene.reconstruct(observation("door"))
    with pytest.raises(SourceError, match="no 'door_body_pos'"):
        scene.set_scene({"board_pos": np.zeros(3)})
    with pytest.raises(SourceError, match="expected 3 finite numbers in 'door_body_pos'"):
        scene.set_scene({"door_body_pos": np.zeros(4)})
    scene.set_scene({"door_body_pos": np.zeros(3)})
    with pytest.raises(SourceError, match=r"expected observations of shape \(steps, 39\), got \(2, 46\)"):
        scene.reconstruct(observation("hammer"))
    with pytest.raises(SourceError, match="not finite"):
        scene.reconstruct(observation("door", o3=np.nan))


def test_missing_gymnasium_robotics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(MissingExtra, match="pip install gymnasium-robotics"):
        build_model("door")


def test_other_gymnasium_robotics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "gymnasium_robotics"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gymnasium_robotics", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no adroit_door\.xml; expected version 1.4"):
        build_model("door")


@pytest.fixture(scope="module")
def door() -> Iterator[AdroitScene]:
    scene = AdroitScene("door", profile="fast")
    scene.set_scene({"door_body_pos": np.array([-0.2, 0.3, 0.3])})
    yield scene
    scene.close()


def test_render_door(door: AdroitScene) -> None:
    images = door.render(np.zeros(30))
    image_HWC = images["top"].astype(int)
    assert list(images) == ["top"]
    assert image_HWC.shape == (84, 84, 3)
    assert images["top"].dtype == np.uint8
    red, green, blue = image_HWC[..., 0], image_HWC[..., 1], image_HWC[..., 2]
    hand = (red > 150) & (red > green + 10) & (green > blue + 20) & (green > 120)
    post = (red > 120) & (green < 40) & (blue < 40)
    assert hand[:42].sum() > 30  # skin colour in the upper half
    assert post[42:].sum() > 10  # the frame's red post in the lower half
    assert np.array_equal(door.render(np.zeros(30))["top"], images["top"])
    turned_Q = np.zeros(30)
    turned_Q[28] = 1.5
    assert np.abs(door.render(turned_Q)["top"].astype(int) - image_HWC).mean() > 3


def test_set_scene_moves_the_door(door: AdroitScene) -> None:
    before_HWC = door.render(np.zeros(30))["top"].astype(int)
    door.set_scene({"door_body_pos": np.array([-0.1, 0.25, 0.3])})
    assert np.abs(door.render(np.zeros(30))["top"].astype(int) - before_HWC).mean() > 3
    door.set_scene({"door_body_pos": np.array([-0.2, 0.3, 0.3])})
    assert np.array_equal(door.render(np.zeros(30))["top"], before_HWC)


def test_close_and_render_again(door: AdroitScene) -> None:
    before_HWC = door.render(np.zeros(30))["top"]
    door.close()
    with pytest.raises(ConfigError, match="no GL context is in use"):
        gl.renderer_name()
    assert np.array_equal(door.render(np.zeros(30))["top"], before_HWC)
    assert len(gl.renderer_name().split()) > 1


def test_render_relocate_from_below() -> None:
    scene = AdroitScene("relocate", image_size=64)
    images = scene.render(np.zeros(36))
    scene.close()
    assert list(images) == ["cam1", "cam2", "cam3"]
    for image_HWC in images.values():
        red, green = image_HWC[..., 0].astype(int), image_HWC[..., 1].astype(int)
        assert image_HWC.shape == (64, 64, 3)
        assert ((red > 80) & (green < 30)).sum() > 3  # the ball, through the table
        assert image_HWC.mean() < 30  # and nothing around it


class NumpyUnpickler(pickle.Unpickler):
    """Arrays, lists, dicts; nothing that can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def real_episodes(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get("VRL3DATA_TEST_DATA")
    path = Path(folder or "") / "adroit" / name
    if not folder or not path.is_file():
        pytest.skip(f"VRL3DATA_TEST_DATA has no adroit/{name}")
    with path.open("rb") as file:
        return cast(list[dict[str, Any]], NumpyUnpickler(file, encoding="latin1").load())


@pytest.mark.realdata
def test_human_door_demonstrations() -> None:
    scene = AdroitScene("door")
    handle_error: list[Array] = []
    arm: list[Array] = []
    reward_error: list[Array] = []
    successes = {"vrl3": 0, "gymnasium": 0}
    for episode in real_episodes("door-v0_demos.pickle"):
        obs_TD = episode["observations"]
        assert detect_task(obs_TD.shape[1], episode["actions"].shape[1], episode["init_state_dict"]) == "door"
        scene.set_scene(episode["init_state_dict"])
        states = scene.reconstruct(obs_TD)
        handle_error.append(np.linalg.norm(states.object_pos_T3 - obs_TD[:, 32:35], axis=1))
        arm.append(states.qpos_TQ[:, 0])
        reward_T, goal_T = rewards("door", "gymnasium", obs_TD, states)
        reach_T = np.linalg.norm(obs_TD[1:, 35:38], axis=1)  # these have the original's -0.1 * distance
        reward_error.append(reward_T[:-1] - 0.2 * reach_T - episode["rewards"][:-1])
        successes["gymnasium"] += success("door", "gymnasium", goal_T)
        successes["vrl3"] += success("door", "vrl3", rewards("door", "vrl3", obs_TD)[1])
    error_N = np.concatenate(handle_error)
    assert error_N.mean() < 0.0008
    assert np.quantile(error_N, 0.99) < 0.0055
    assert -0.3 < np.concatenate(arm).min() < np.concatenate(arm).max() < 0.5
    assert np.abs(np.concatenate(reward_error)).max() < 0.02
    assert successes == {"vrl3": 6, "gymnasium": 7}


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["hammer", "pen", "relocate"])
def test_expert_rollouts(task: str) -> None:
    scene = AdroitScene(task)
    state_error: list[Array] = []
    reward_error: list[Array] = []
    for episode in real_episodes(f"expert_rollouts/{task}-v0_expert_rollouts.pickle"):
        obs_TD = episode["observations"]
        scene.set_scene(episode["init_state_dict"])
        states = scene.reconstruct(obs_TD)
        state_error.append(states.error_T)
        reward_T, goal_T = rewards(task, "gymnasium", obs_TD, states)
        reward_error.append(np.abs(reward_T - episode["rewards"])[:-1])
        assert success(task, "gymnasium", goal_T)
        assert success(task, "vrl3", rewards(task, "vrl3", obs_TD)[1])
    assert np.concatenate(state_error).mean() < 0.001
    assert np.concatenate(state_error).max() < 0.007
    assert np.concatenate(reward_error).mean() < 0.004

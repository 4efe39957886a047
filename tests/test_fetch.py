"""FetchReach from pixels, its demonstrator, and the GL context that it shares with Adroit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vrl3data
from vrl3data.envs import gl
from vrl3data.envs.fetch import FetchReach, ScriptedReach
from vrl3data.errors import ConfigError, MissingExtra


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def env() -> Iterator[FetchReach]:
    env = FetchReach(max_steps=25)
    yield env
    env.close()


def red_pixels(image_HWC: np.ndarray) -> np.ndarray:
    """Rows and columns (N, 2) that are clearly red: only the goal is."""
    red, green, blue = image_HWC.astype(int).transpose(2, 0, 1)
    return np.argwhere(red - np.maximum(green, blue) > 60)


def test_spaces(env: FetchReach) -> None:
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert obs["image"].shape == (84, 84, 3)
    assert obs["proprio"].dtype == np.float32
    assert np.allclose(obs["proprio"], env.gripper)
    assert env.action_space.shape == (4,)
    assert env.action_space.dtype == np.float32
    assert info == {"is_success": 0.0}
    assert env.dt == pytest.approx(0.04)
    assert not np.shares_memory(obs["image"], env.render())


def test_same_seed_same_episode(env: FetchReach) -> None:
    demonstrator = ScriptedReach()
    runs = []
    for _ in range(2):
        obs, _ = env.reset(seed=7)
        rng = np.random.default_rng(7)
        frames = [obs["image"]]
        for _ in range(5):
            frames.append(env.step(demonstrator.action(env, rng))[0]["image"])
        runs.append((env.goal, np.array(frames), env.sim_state()["sim.qpos"]))
    for first, second in zip(runs[0], runs[1], strict=True):
        assert np.array_equal(first, second)
    obs, _ = env.reset(seed=8)
    assert not np.allclose(env.goal, runs[0][0])
    assert not np.array_equal(obs["image"], runs[0][1][0])


def test_goal_is_drawn_where_it_is(env: FetchReach) -> None:
    """Left, right, above: the red ball follows the goal at a reset and stays during steps."""
    env.reset(seed=0)
    state = env.sim_state()
    places = {}
    for name, offset in {"mid": (0.1, 0, 0), "side": (0.1, 0.1, 0), "up": (0.1, 0, 0.1)}.items():
        state["sim.goal"] = np.array([1.34, 0.75, 0.45]) + offset
        env.set_sim_state(state)
        places[name] = red_pixels(env.render()).mean(axis=0)
    assert places["up"][0] < places["mid"][0] - 3
    assert places["side"][1] > places["mid"][1] + 3
    obs, _ = env.reset(seed=0)
    before = red_pixels(obs["image"])
    after = red_pixels(env.step(np.array([0, 0, 1, 0], dtype=np.float32))[0]["image"])
    assert len(before) > 5
    assert np.array_equal(before, after)


def test_sim_state_renders_again(env: FetchReach) -> None:
    env.reset(seed=3)
    obs, *_ = env.step(np.array([1, -1, 0.5, 0], dtype=np.float32))
    state = env.sim_state()
    assert all(name.startswith("sim.") and value.dtype == np.float64 for name, value in state.items())
    env.reset(seed=4)
    assert not np.array_equal(env.render(), obs["image"])
    env.set_sim_state(state)
    assert np.array_equal(env.render(), obs["image"])


def test_step_rewards_and_limit(env: FetchReach) -> None:
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(1, 26):
        _, reward, terminated, truncated, info = env.step(ScriptedReach().action(env, rng))
        near = np.linalg.norm(env.goal - env.gripper) < 0.05
        assert reward == (0.0 if near else -1.0)
        assert info["is_success"] == float(near)
        assert not terminated
        assert truncated == (step == 25)
    assert near


def test_advance_moves_as_step_does(env: FetchReach) -> None:
    moves = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    env.reset(seed=5)
    stepped = [env.step(action_4) for action_4 in moves]
    env.reset(seed=5)
    advanced = [env.advance(action_4) for action_4 in moves]
    assert [row[1:] for row in stepped] == advanced
    obs = env.observe()
    assert all(np.array_equal(obs[key], stepped[-1][0][key]) for key in env.observation_space)
    assert not np.array_equal(obs["image"], stepped[0][0]["image"])


def test_names_of_the_features(env: FetchReach) -> None:
    """As a recording of it has them: the packaged sample is one."""
    assert list(env.features) == list(env.observation_space)
    with vrl3data.open("sample:fetch-reach") as dataset:
        assert set(env.features.values()) <= set(dataset.schema.names)
    assert [f"obs.image.{camera}" for camera in env.cameras] == list(env.features.values())[:-1]
    assert env.reward_scale == 1


def test_demonstrator(env: FetchReach) -> None:
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    action_4 = ScriptedReach().action(env, rng)
    assert action_4.dtype == np.float32
    assert env.action_space.contains(action_4)
    assert action_4[3] == 0
    exact_4 = ScriptedReach(noise=0).action(env, rng)
    assert np.allclose(exact_4[:3], np.clip(10 * (env.goal - env.gripper), -1, 1))


def test_image_size_and_wrong_arguments() -> None:
    small = FetchReach(image_size=32)
    assert small.reset(seed=0)[0]["image"].shape == (32, 32, 3)
    assert small.max_steps == 50
    small.close()
    with pytest.raises(ConfigError, match="expected a positive size and step limit, got 0 and 50"):
        FetchReach(image_size=0)


def test_missing_gymnasium_robotics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.fetch.reach", None)
    with pytest.raises(MissingExtra, match="pip install gymnasium-robotics"):
        FetchReach()


def test_import_prints_nothing() -> None:
    result = run_python("from vrl3data.envs.fetch import FetchReach; FetchReach().close()")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_image_larger_than_mujocos_default() -> None:
    mujoco = gl.load_mujoco()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    renderer = gl.make_renderer(model, 700, 900)
    assert renderer.render().shape == (700, 900, 3)
    renderer.close()


MAKE_RENDERER = """
import vrl3data
from vrl3data.envs import gl
from vrl3data.errors import ConfigError
try:
    model = gl.load_mujoco().MjModel.from_xml_string("<mujoco/>")
    gl.make_renderer(model, 8, 8)
except ConfigError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="EGL is used on Linux")
def test_no_gl_driver(tmp_path: Path) -> None:
    """libEGL asks for drivers in a folder that has none."""
    env = {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path)}
    result = run_python(MAKE_RENDERER, **env)
    assert "no GL context could be made" in result.stdout
    assert "apt-get install libegl1 libgl1-mesa-dri" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("None.eglQueryString", "apt-get install libegl1 libgl1-mesa-dri"),
        ("raise RuntimeError('invalid value')", "ConfigError mujoco cannot be imported: invalid value"),
        ("import no_such_module", "MissingExtra rendering needs mujoco"),
    ],
)
def test_mujoco_does_not_import(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "mujoco.py").write_text(source)
    path = os.pathsep.join([str(tmp_path), str(Path(gl.__file__).parents[2])])
    assert message in run_python(MAKE_RENDERER, PYTHONPATH=path).stdout


def test_imports_are_cheap() -> None:
    code = (
        "import sys, vrl3data.envs.adroit, vrl3data.envs.fetch; "
        "print([name for name in ('mujoco', 'torch', 'gymnasium_robotics') if name in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_torch_after_a_gl_context() -> None:
    """In the other order (context, then triton) Mesa's software driver and triton crash."""
    code = (
        "import numpy as np; from vrl3data.envs.adroit import AdroitScene; "
        "AdroitScene('door', profile='no-shadow').render(np.zeros(30)); "
        "import torch; torch.optim.Adam([torch.zeros(2, requires_grad=True)]); print('alive')"
    )
    result = run_python(code)
    assert result.stdout.strip() == "alive", result.stderr

"""Action repeat: what is summed, what is counted, what is drawn."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from vrl3data.envs.adroit_env import Door
from vrl3data.envs.repeat import ActionRepeat
from vrl3data.errors import ConfigError


class Ladder(gymnasium.Env[Any, Any]):
    """Counts frames; at the goal in frame 2, ends in frame 5. Draws in every step."""

    metadata = {"render_modes": [], "render_fps": 50}  # noqa: RUF012
    observation_space = spaces.Box(0, 100, (), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    dt = 0.02

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return np.float32(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return np.float32(self.count), float(self.count), self.count == 5, False, {"goal_achieved": self.count == 2}


def test_action_repeat_sums_and_stops_at_the_end() -> None:
    env = ActionRepeat(Ladder(), 2)
    env.reset()
    seen = [env.step(np.zeros(1)) for _ in range(3)]
    assert [row[0] for row in seen] == [2, 4, 5]
    assert [row[1] for row in seen] == [3, 7, 5]
    assert [row[2] for row in seen] == [False, False, True]
    assert [row[4]["goal_frames"] for row in seen] == [1, 0, 0]
    assert [row[4]["goal_achieved"] for row in seen] == [True, False, False]
    assert [row[4]["frames"] for row in seen] == [2, 2, 1]
    assert env.dt == 0.04
    with pytest.raises(ConfigError, match="an action repeat of at least 1, found 0"):
        ActionRepeat(Ladder(), 0)


def test_goal_of_the_first_frame_counts() -> None:
    env = ActionRepeat(Ladder(), 4)
    env.reset()
    assert env.step(np.zeros(1))[4] == {"goal_achieved": True, "frames": 4, "goal_frames": 1}


def test_our_environments_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env, drawn = Door(image_size=24, render="fast"), []
    repeat = ActionRepeat(env, 2)
    assert (repeat.cameras, repeat.features, repeat.reward_scale) == (env.cameras, env.features, env.reward_scale)
    assert repeat.dt == 0.02
    repeat.reset(seed=3)
    moves = np.random.default_rng(0).uniform(-1, 1, (4, 28)).astype(np.float32)
    render = env._scene.render
    monkeypatch.setattr(env._scene, "render", lambda qpos_Q: drawn.append(1) or render(qpos_Q))
    repeated = [repeat.step(action_A) for action_A in moves]
    assert len(drawn) == 4
    monkeypatch.undo()
    env.reset(seed=3)
    plain = [env.step(action_A) for action_A in np.repeat(moves, 2, axis=0)]
    for number, row in enumerate(repeated):
        assert np.array_equal(row[0]["image.top"], plain[2 * number + 1][0]["image.top"])
        assert row[1] == plain[2 * number][1] + plain[2 * number + 1][1]
    env.close()

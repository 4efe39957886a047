"""Action repeat that draws only the frame it hands out."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import TransformReward

from vrl3data.errors import ConfigError


def unscaled(env: Any) -> Any:
    """Datasets hold the environment's rewards before scaling; whoever learns from them scales (`reward_scale`)."""
    scale = float(env.get_wrapper_attr("reward_scale"))
    return env if scale == 1 else TransformReward(env, lambda reward: float(reward) / scale)


class ActionRepeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Every action is done for `repeats` frames of `env`, or until the episode ends.

    Rewards are summed (VRL3, released code: not averaged, not discounted). `terminated`, `truncated` and `info` are
    those of the last frame, but `goal_achieved`, where the environment tells it, is whether any frame was at the goal.
    `info["frames"]` counts the frames that were done, `info["goal_frames"]` those at the goal. An environment with
    `advance` and `observe` (ours) renders once, others once a frame.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], repeats: int) -> None:
        if repeats < 1:
            raise ConfigError(f"expected an action repeat of at least 1, found {repeats}")
        super().__init__(env)
        self.repeats = repeats
        self._lazy: Any = env if hasattr(env, "advance") and hasattr(env, "observe") else None

    @property
    def dt(self) -> float:
        """Seconds between two steps."""
        return self.repeats * float(self.env.get_wrapper_attr("dt"))

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.env.get_wrapper_attr("cameras")

    @property
    def features(self) -> dict[str, str]:
        return self.env.get_wrapper_attr("features")

    @property
    def reward_scale(self) -> float:
        return self.env.get_wrapper_attr("reward_scale")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, total, frames, goal_frames = None, 0.0, 0, 0
        while frames < self.repeats:
            if self._lazy is not None:
                reward, terminated, truncated, info = self._lazy.advance(action)
            else:
                observation, reward, terminated, truncated, info = self.env.step(action)
            frames += 1
            total += float(reward)
            goal_frames += bool(info.get("goal_achieved", info.get("is_success", False)))
            if terminated or truncated:
                break
        counts = {"frames": frames, "goal_frames": goal_frames}
        if "goal_achieved" in info:
            counts["goal_achieved"] = goal_frames > 0
        if self._lazy is not None:
            observation = self._lazy.observe()
        return observation, total, terminated, truncated, {**info, **counts}

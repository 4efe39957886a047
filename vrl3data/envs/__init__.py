"""Simulated environments: the only files that import mujoco."""

from __future__ import annotations

ENVS = {
    "fetch-reach": "vrl3data.envs.fetch:FetchReach",
    "adroit-door": "vrl3data.envs.adroit_env:Door",
    "adroit-hammer": "vrl3data.envs.adroit_env:Hammer",
    "adroit-pen": "vrl3data.envs.adroit_env:Pen",
    "adroit-relocate": "vrl3data.envs.adroit_env:Relocate",
}
"""name -> a Gymnasium environment class that takes `image_size` and `max_steps`.

Each has `cameras`, `features` (key of the observation -> name of the feature in a dataset, pictures first),
`reward_scale` (what rewards of a dataset are multiplied by to be those of the environment), `advance(action)`
(`step` without the observation) and `observe()`.
"""

DEMONSTRATORS = {"fetch-reach": "vrl3data.envs.fetch:ScriptedReach"}
"""name -> a class with `action(env, rng)` that solves the environment; it takes `noise`."""

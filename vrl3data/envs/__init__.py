"""Simulated environments: the only files that import mujoco."""

from __future__ import annotations

ENVS = {"fetch-reach": "vrl3data.envs.fetch:FetchReach"}
"""name -> a Gymnasium environment class that takes `image_size` and `max_steps`."""

DEMONSTRATORS = {"fetch-reach": "vrl3data.envs.fetch:ScriptedReach"}
"""name -> a class with `action(env, rng)` that solves the environment; it takes `noise`."""

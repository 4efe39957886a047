"""Simulated environments: the only files that import mujoco."""

"""Objectives of stage 1: one file each, and one line in `OBJECTIVES`."""

from __future__ import annotations

OBJECTIVES = {"supervised": "pretrain.objectives.supervised:Supervised"}
"""name -> a class as `pretrain.loop.Objective` describes it."""

"""Objectives of stage 1: one file each, and one line in `OBJECTIVES`."""

from __future__ import annotations

OBJECTIVES = {
    "hilp": "pretrain.objectives.hilp:Hilp",
    "mae": "pretrain.objectives.mae:Mae",
    "supervised": "pretrain.objectives.supervised:Supervised",
}
"""name -> a class as `pretrain.loop.Objective` describes it."""

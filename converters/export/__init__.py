"""Datasets -> the layouts of other tools. A new one is one module and one line in `EXPORTS`."""

from __future__ import annotations

EXPORTS: dict[str, str] = {
    "lerobot": "converters.export.lerobot:LerobotExporter",
    "robomimic": "converters.export.robomimic:RobomimicExporter",
    "minari": "converters.export.minari:MinariExporter",
    "frames": "converters.export.frames:FramesExporter",
}
"""name -> the exporter's class. Its docstring's first line says what it writes."""

"""Datasets as LeRobot sets of version 3.0."""

from converters.export.lerobot.exporter import LerobotExporter as LerobotExporter
from converters.export.lerobot.exporter import LerobotExportOptions as LerobotExportOptions

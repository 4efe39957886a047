"""env_args of a robomimic file: the environment that a dataset was recorded in, as its source or a person says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrl3data.errors import ConfigError, locate


def of_source(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of the source, if it was a robomimic file or robosuite's raw one."""
    args, info = said.get("env_args"), said.get("env_info")
    if isinstance(args, dict) and args:
        return args
    if isinstance(said.get("env"), str) and isinstance(info, dict):  # what robomimic's own script makes of it
        kwargs = {key: value for key, value in info.items() if key != "env_name"}
        return {"env_name": said["env"], "env_version": said.get("repository_version", ""), "type": 1,
                "env_kwargs": kwargs}  # fmt: skip
    return {}


def read(path: str) -> dict[str, Any]:
    with locate(path=path):
        try:
            found = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"env_args: expected a JSON file: {error}") from error
        if not isinstance(found, dict) or "env_name" not in found or "type" not in found:
            raise ConfigError("env_args: expected a JSON object with env_name and type (1 robosuite, 2 gym, 3 iGibson)")
        return found

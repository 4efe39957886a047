"""The libraries that robot logs need, imported when they are used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from vrl3data.errors import MissingExtra


@cache
def library(name: str) -> Any:
    """The module `name`; MissingExtra if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtra(
            f"robot logs need the extra robotlogs ({package}): pip install 'vrl3data[robotlogs]'"
        ) from error

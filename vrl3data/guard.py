"""Refuses to run when a foreign package hides one of ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vrl3data.errors import ConfigError

NEIGHBOURS = ("converters", "pretrain", "cards")


def check_neighbours() -> None:
    """Our four packages are installed side by side; the generic names of three may be taken by others."""
    home = Path(__file__).resolve().parent.parent
    for name in NEIGHBOURS:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found != home / name / "__init__.py":
            raise ConfigError(
                f"vrl3data needs its own package {name!r} from {home}, but Python finds "
                f"{found or 'none'}; run from another folder or remove the other package from the path"
            )

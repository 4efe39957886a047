"""Configuration: a frozen dataclass <- a TOML file <- `key=value` settings, misspellings refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vrl3data.errors import ConfigError, did_you_mean, locate

Config = TypeVar("Config")


def load(cls: type[Config], path: Path | None = None, settings: Sequence[str] = ()) -> Config:
    """Build `cls` from its defaults, then `path`, then each `key=value` of `settings`."""
    values: dict[str, Any] = {}
    if path is not None:
        with locate(path=path):
            values.update(read_toml(path))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, found {setting!r}")
        values[key.strip()] = _parse(text)
    return build(cls, values)


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """`cls(**values)` after checking every key and type; `image-size` is taken for `image_size`."""
    assert is_dataclass(cls)
    hints = get_type_hints(cls)
    known = {field.name for field in fields(cls)}
    checked = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(name, known)}")
        checked[name] = _fit(name, value, hints[name])
    return cls(**checked)


def read_toml(path: Path) -> dict[str, Any]:
    """A flat table."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read this as TOML: {error}") from error


def _parse(text: str) -> Any:
    """A TOML value, or else the text itself, so that `task=door` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fit(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_fit(name, item, get_args(hint)[0]) for item in items)
    choices = [choice for choice in (get_args(hint) or (hint,)) if choice is not type(None)]
    if value is None or value in choices:
        return value
    if float in choices and type(value) is int:
        return float(value)
    for choice in choices:
        if isinstance(choice, type) and type(value) is choice:
            return value
    wanted = " or ".join(getattr(choice, "__name__", repr(choice)) for choice in choices)
    raise ConfigError(f"{name}: expected {wanted}, found {value!r}")

"""Text from outside in cards: none of it becomes Markdown, HTML, YAML or a table cell."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

Row = tuple[str, ...]

LICENSES = re.compile(
    r"unknown|mit|isc|zlib|pddl|odbl|odc-by|unlicense|apache-2\.0|bsd|bsd-[23]-clause|mpl-2\.0|gpl-[23]\.0|agpl-3\.0|"
    r"lgpl-(2\.1|3\.0)|cc0-1\.0|cc-by(-nc)?(-sa)?-[34]\.0|cc-by(-nc)?-nd-4\.0|cdla-permissive-[12]\.0"
)
"""What the hub takes as `license`; it wants anything else as `other` with a `license_name`."""
SHOWN_FACTS, SHOWN_LENGTH = 60, 400
"""Of a configuration in a card: rows, and characters of a value."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$#])")
_CODE = re.compile(r"[\w.:+/-]+", re.ASCII)


def plain(text: object) -> str:
    """`text` on one line, without control characters: YAML allows few of them, and they hide what is shown."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def escaped(value: object) -> str:
    """Every expression in a template goes through here: text cannot become Markdown, HTML or table cells."""
    if isinstance(value, Markup):
        return str(value)
    return _MARKDOWN.sub(r"\\\1", html.escape(plain(value), quote=False))


def code(text: object) -> Markup:
    """As a code span if that is safe: nothing can be escaped inside of one."""
    return Markup(f"`{text}`") if _CODE.fullmatch(str(text)) else Markup(escaped(text))


def word(text: str) -> Markup:
    """For the examples: code takes no escapes."""
    return Markup(re.sub(r"[^\w.-]", "_", text, flags=re.ASCII))


def render(template: str, front: Mapping[str, Any], **values: Any) -> str:
    """A template of this package with `front` as YAML between the two `---`."""
    environment = jinja2.Environment(
        finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    matter = Markup(yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=False).strip())
    source = files("cards").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(front=matter, code=code, **values)


def license_fields(license_name: str) -> dict[str, str]:
    """`license` for the hub, with `license_name` where it does not know the licence."""
    found = re.sub(r"[^a-z0-9.]+", "-", plain(license_name).lower()).strip("-") or "unknown"
    return {"license": found} if LICENSES.fullmatch(found) else {"license": "other", "license_name": found}


# -- JSON of which nothing is known ----------------------------------------------------------------------------


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def shown(value: object) -> str:
    """A JSON value on one line, cut where it would fill the page."""
    if isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "none"}[value]
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        text = plain(json.dumps(value, ensure_ascii=False, default=str))
    else:
        text = plain(value)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("optimizer.lr", 0.1)` for everything in nested JSON objects that is not an object itself."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from leaves(mapping(item), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def facts(value: object) -> list[Row]:
    """Rows (name, value) of a JSON object, the first SHOWN_FACTS of them."""
    rows: list[Row] = [(plain(name), shown(item)) for name, item in leaves(mapping(value))]
    if len(rows) > SHOWN_FACTS:
        rest = f"{len(rows) - SHOWN_FACTS} more, in the JSON file"
        return [*rows[:SHOWN_FACTS], ("…", rest)]
    return rows

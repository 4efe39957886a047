"""What the cards of encoders and policies share. All facts come from the JSON sidecar; what it lacks is unknown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cards.text import Row, facts, leaves, license_fields, mapping, plain, shown
from vrl3data import storage
from vrl3data.errors import ConfigError, DamagedError, locate

CARD = "README.md"
UNKNOWN = "unknown"
MAX_SCORES = 100
METRICS = {
    "val_top1": ("accuracy", "share of held-out images whose most probable class is the right one, 0 to 1"),
    "success": ("success_rate", "share of episodes that succeed at their last step, 0 to 1"),
    "success_low": ("success_low", "lower end of its 95 % interval (Wilson)"),
    "success_high": ("success_high", "upper end of its 95 % interval (Wilson)"),
    "success_any": ("success_any", "share of episodes that succeed at any step, 0 to 1"),
    "return": ("mean_reward", "mean over the episodes of the sum of the environment's rewards"),
    "episodes": ("episodes", "episodes played"),
}
"""Our own score -> (metric of the hub, what it is). Others are shown by the name they have."""
_COUNTS = re.compile(r"(.*[._])?(count|episodes|seeds?|steps|images|samples|goals|seconds|frames|n|low|high)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def read_sidecar(directory: Path, name: str) -> Mapping[str, Any]:
    """The JSON object that says what lies beside it. ConfigError if there is none, DamagedError if it is not one."""
    with locate(path=directory):
        try:
            return parse_sidecar((directory / name).read_bytes(), name)
        except FileNotFoundError as error:
            raise ConfigError(f"there is no {name} in this directory") from error
        except OSError as error:
            raise DamagedError(f"{name} cannot be read: {error.strerror}") from error


def parse_sidecar(data: bytes, name: str) -> Mapping[str, Any]:
    """DamagedError unless `data` is a JSON object."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} is not JSON: {plain(error)}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{name}: expected a JSON object, found {type(found).__name__}")
    return found


def write(directory: Path, text: str, overwrite: bool) -> Path:
    """Put a card into `directory`, whole or not at all. One that is there stays unless `overwrite`."""
    path = directory / CARD
    if overwrite or not path.exists():
        with storage.writing(path):
            storage.replace_file(path, text.encode("utf-8"))
    return path


def data_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """Name, fingerprint and licence of the training data, each `unknown` if it is, then whatever else is said.

    Empty if the sidecar says that there was none.
    """
    if "data" in provenance and provenance["data"] is None:
        return []
    data = mapping(provenance.get("data"))
    head: list[Row] = [(key, shown(data.get(key) or UNKNOWN)) for key in ("name", "fingerprint", "license")]
    return head + facts({key: value for key, value in data.items() if key not in ("name", "fingerprint", "license")})


def data_license(provenance: Mapping[str, Any]) -> str:
    return shown(mapping(provenance.get("data")).get("license") or UNKNOWN)


def scores(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Every finite number in the recorded scores."""
    found = {
        plain(name): value
        for name, value in leaves(mapping(provenance.get("scores")))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    return dict(list(found.items())[:MAX_SCORES])


def score_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """Score, value, what it is."""
    return [(name, shown(value), METRICS.get(name, ("", ""))[1]) for name, value in scores(provenance).items()]


def measured_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """How the scores were measured, as far as the sidecar says so."""
    said = provenance.get("evaluation") or provenance.get("val")
    if isinstance(said, str):
        return [("measured", shown(said))]
    return facts(said)


def front_matter(
    name: str, provenance: Mapping[str, Any], task: str, tags: Sequence[str], measured_on: str
) -> dict[str, Any]:
    """The YAML of a model card for the hub. `measured_on` is the data or environment of the scores."""
    # The licence of the data is not that of the weights: which one those have, only their maker can say.
    front: dict[str, Any] = {
        **license_fields(shown(provenance.get("license") or UNKNOWN)),
        "library_name": "vrl3data",
        "pipeline_tag": task,
        "tags": [plain(tag) for tag in dict.fromkeys(("vrl3data", "visual-rl", *tags)) if plain(tag)],
    }
    # The hub turns both of these into links, so they may only name what is really there.
    if dataset := hub_id(provenance.get("data")):
        front["datasets"] = [dataset]
    changed = next((key for key in ("finetuned", "inflated", "encoder") if hub_id(provenance.get(key))), None)
    if changed:
        front["base_model"] = hub_id(provenance[changed])
    # Scores of an inflated encoder are those of the one it was made from.
    results = [] if provenance.get("inflated") else _results(provenance, task, measured_on)
    if results:
        front["model-index"] = [{"name": name, "results": results}]
    return front


def hub_id(value: object) -> str | None:
    """`user/name` if `value` is, or names as its `hub`, a repository of the hub."""
    found = mapping(value).get("hub") or mapping(value).get("name") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) and _HUB_ID.fullmatch(found) else None


def _results(provenance: Mapping[str, Any], task: str, measured_on: str) -> list[dict[str, Any]]:
    """The `model-index` of the hub: one task and dataset, all scores that are not counts."""
    metrics = [
        {"type": METRICS.get(name, (name,))[0], "value": value, "name": name}
        for name, value in scores(provenance).items()
        if not _COUNTS.fullmatch(name)
    ]
    if not metrics:
        return []
    kind = re.sub(r"[^\w./-]+", "-", measured_on, flags=re.ASCII).strip("-") or UNKNOWN
    return [{"task": {"type": task}, "dataset": {"name": measured_on, "type": kind}, "metrics": metrics}]

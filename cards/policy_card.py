"""README.md of a policy, from its sidecar: which environment, what it sees, how it was trained, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cards import model_card
from cards.model_card import UNKNOWN
from cards.text import Row, facts, mapping, plain, render, shown

SIDECAR, WEIGHTS = "policy.json", "policy.safetensors"
TASK = "reinforcement-learning"
_ABOUT = ("checkpoint_version", "kind", "env", "env_options", "cameras", "frames", "image_size", "sensor", "sensor_dim",
          "action_dim", "action_low", "action_high", "encoder", "encoder_arch", "encoder_mean", "encoder_std",
          "provenance", "sha256")  # fmt: skip
_BOUNDS = {"action_low": "lowest action", "action_high": "highest action"}
_APART = ("data", "scores", "val", "evaluation", "config", "versions", "license", "encoder")


def policy_card(sidecar: Mapping[str, Any]) -> str:
    """The card as Markdown. Reads nothing but `sidecar`, the content of policy.json."""
    provenance = mapping(sidecar.get("provenance"))
    env = shown(sidecar.get("env") or UNKNOWN)
    name = title(sidecar)
    tags = ["robotics", env if sidecar.get("env") else "", shown(_method(provenance) or "")]
    return render(
        "policy_card.md",
        model_card.front_matter(name, provenance, TASK, tags, env),
        title=name,
        env=env,
        about=about_rows(sidecar),
        weights=Markup(WEIGHTS),
        sha256=shown(sidecar.get("sha256") or UNKNOWN),
        data=model_card.data_rows(provenance),
        data_license=model_card.data_license(provenance),
        license=shown(provenance.get("license") or UNKNOWN),
        encoder=encoder_rows(sidecar),
        training=training_rows(provenance),
        config=facts(provenance.get("config")),
        scores=model_card.score_rows(provenance),
        measured=model_card.measured_rows(provenance),
    )


def write_card(directory: Path, overwrite: bool = True) -> Path:
    """Put the card into the policy's directory, whole or not at all; without `overwrite` one that is there stays."""
    text = policy_card(model_card.read_sidecar(directory, SIDECAR))
    return model_card.write(directory, text, overwrite)


def title(sidecar: Mapping[str, Any]) -> str:
    """`fetch-reach, vrl3`."""
    provenance = mapping(sidecar.get("provenance"))
    parts = (sidecar.get("env") or "policy", _method(provenance), provenance.get("stage"))
    return ", ".join(shown(part) for part in parts if part)


def _method(provenance: Mapping[str, Any]) -> object:
    return provenance.get("objective") or provenance.get("preset")


def about_rows(sidecar: Mapping[str, Any]) -> list[Row]:
    """What it sees and what it does, then whatever else the sidecar says."""
    options = facts(sidecar.get("env_options"))
    more = facts({key: value for key, value in sidecar.items() if key not in _ABOUT})
    return [
        ("environment", shown(sidecar.get("env") or UNKNOWN)),
        *[(f"environment, {name}", value) for name, value in options],
        ("cameras", _listed(sidecar.get("cameras"))),
        ("stacked frames", shown(sidecar.get("frames") or UNKNOWN)),
        ("image size", shown(sidecar.get("image_size") or UNKNOWN)),
        ("sensor", shown(sidecar.get("sensor") or "none") if "sensor" in sidecar else UNKNOWN),
        ("numbers of the sensor", _known(sidecar.get("sensor_dim"))),
        ("numbers of an action", _known(sidecar.get("action_dim"))),
        *[(label, shown(sidecar[key])) for key, label in _BOUNDS.items() if key in sidecar],
        *more,
    ]


def encoder_rows(sidecar: Mapping[str, Any]) -> list[Row]:
    """What is known of the encoder inside: its architecture, and where it came from."""
    said, origin = sidecar.get("encoder"), mapping(sidecar.get("provenance")).get("encoder")
    arch = sidecar.get("encoder_arch", said)
    known = UNKNOWN if arch is None else shown(arch or "none, it sees sensors only")
    rows: list[Row] = facts(said) if isinstance(said, Mapping) else [("architecture", known)]
    if origin is None and arch == "":
        return rows
    if not isinstance(origin, Mapping):
        return [*rows, ("origin", shown(origin or UNKNOWN))]
    return [*rows, *((f"origin, {row[0]}", row[1]) for row in facts(origin))]


def training_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """What made it, without what has a part of its own."""
    rows = facts({key: value for key, value in provenance.items() if key not in _APART})
    versions = ", ".join(f"{plain(key)} {shown(value)}" for key, value in mapping(provenance.get("versions")).items())
    return [*rows, ("versions", versions or UNKNOWN)]


def _listed(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "none"
    return shown(value or UNKNOWN)


def _known(value: object) -> str:
    """Nought is a fact here."""
    return UNKNOWN if value is None else shown(value)

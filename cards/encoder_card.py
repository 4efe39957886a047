"""README.md of an encoder, from its sidecar: what it takes, what it gives, what it was trained on, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cards import model_card
from cards.model_card import UNKNOWN
from cards.text import Row, facts, mapping, plain, render, shown
from vrl3data.errors import Vrl3dataError

SIDECAR, WEIGHTS = "encoder.json", "encoder.safetensors"
TASK = "image-feature-extraction"
MAX_CHANNELS = 3 * 256
"""Of an input that is believed: the sidecar may come from anywhere, and the statistics are repeated over channels."""
_APART = ("data", "scores", "val", "evaluation", "config", "versions", "license")


def encoder_card(sidecar: Mapping[str, Any]) -> str:
    """The card as Markdown. Reads nothing but `sidecar`, the content of encoder.json."""
    provenance = mapping(sidecar.get("provenance"))
    name, on = title(sidecar), measured_on(provenance)
    tags = ["feature-extraction", shown(sidecar.get("arch", "")), shown(provenance.get("objective") or "")]
    size = sidecar.get("image_size")
    return render(
        "encoder_card.md",
        model_card.front_matter(name, provenance, TASK, tags, on),
        title=name,
        about=about_rows(sidecar),
        channels=_number(sidecar.get("in_channels")),
        size=_number(size),
        weights=Markup(WEIGHTS),
        sha256=shown(sidecar.get("sha256") or UNKNOWN),
        data=model_card.data_rows(provenance),
        data_license=model_card.data_license(provenance),
        license=shown(provenance.get("license") or UNKNOWN),
        training=training_rows(provenance),
        config=facts(provenance.get("config")),
        scores=model_card.score_rows(provenance),
        measured=model_card.measured_rows(provenance),
        images_seen=shown(size or UNKNOWN),
        inflated=bool(provenance.get("inflated")),
    )


def write_card(directory: Path, overwrite: bool = True) -> Path:
    """Put the card into the encoder's directory, whole or not at all; without `overwrite` one that is there stays."""
    text = encoder_card(model_card.read_sidecar(directory, SIDECAR))
    return model_card.write(directory, text, overwrite)


def title(sidecar: Mapping[str, Any]) -> str:
    """`resnet6_32channel, supervised`."""
    provenance = mapping(sidecar.get("provenance"))
    parts = [sidecar.get("arch") or "encoder", provenance.get("objective")]
    parts += ["inflated"] if provenance.get("inflated") else []
    return ", ".join(shown(part) for part in parts if part)


def measured_on(provenance: Mapping[str, Any]) -> str:
    """The data that the scores were measured on."""
    said = mapping(provenance.get("evaluation")) or mapping(provenance.get("val"))
    return shown(said.get("name") or said.get("data") or f"{UNKNOWN} (not recorded)")


def about_rows(sidecar: Mapping[str, Any]) -> list[Row]:
    """What goes in and what comes out."""
    built = _network(sidecar)
    channels, size = sidecar.get("in_channels"), sidecar.get("image_size")
    images = ""
    if isinstance(channels, int):
        images = " (1 RGB image)" if channels == 3 else f" ({channels // 3} RGB images, oldest frame first)"
    mean, std = (shown(sidecar.get(key) or UNKNOWN) for key in ("mean", "std"))
    return [
        ("architecture", shown(sidecar.get("arch") or UNKNOWN)),
        ("input", f"N x {shown(channels or UNKNOWN)} x {shown(size or UNKNOWN)} x {shown(size or UNKNOWN)}{images}"),
        ("values", "uint8, or float from 0 to 255"),
        ("normalisation, done inside", f"of values in 0 to 1, per RGB channel: mean {mean}, std {std}"),
        ("stored as", shown(sidecar.get("dtype") or UNKNOWN)),
        ("features", built.get("feature_dim", shown(sidecar.get("feature_dim") or UNKNOWN))),
        ("parameters", built.get("parameters", shown(sidecar.get("parameters") or UNKNOWN))),
    ]


def training_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """What made it, without the data, the scores and the configuration, which have parts of their own."""
    rows = facts({key: value for key, value in provenance.items() if key not in _APART})
    versions = ", ".join(f"{plain(key)} {shown(value)}" for key, value in mapping(provenance.get("versions")).items())
    return [*rows, ("versions", versions or UNKNOWN)]


def _network(sidecar: Mapping[str, Any]) -> dict[str, str]:
    """Feature dimension and parameters of the architecture; nothing where this version does not know it."""
    import torch

    from vrl3data.encoders.encoder import Encoder, EncoderSpec

    if int(_number(sidecar.get("in_channels")) or 0) > MAX_CHANNELS:
        return {}
    known = {field.name: sidecar[field.name] for field in fields(EncoderSpec) if field.name in sidecar}
    try:
        # On `meta` nothing is allocated, whatever sizes the sidecar names.
        with torch.device("meta"):
            encoder = Encoder(EncoderSpec(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])}))
    except (Vrl3dataError, KeyError, TypeError, ValueError, RuntimeError):
        return {}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return {"feature_dim": f"{encoder.feature_dim:,}", "parameters": f"{parameters:,}"}


def _number(value: object) -> Markup | None:
    """For the example; None leaves it out."""
    return Markup(str(value)) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

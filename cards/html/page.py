"""One HTML file that shows a dataset: pictures, curves, schema, statistics. It asks no network for anything."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc
from PIL import Image

from cards import dataset_card as facts
from cards.html.plot import Plot, line_plot
from cards.text import plain
from vrl3data import storage
from vrl3data.dataset import Dataset, StoredSample
from vrl3data.errors import DestinationError, locate
from vrl3data.schema import Array
from vrl3data.stats import MAX_FRAMES

MARK = b'<meta name="generator" content="vrl3data">'
PLOTTED = ("action", "reward")
GALLERY = 100
"""Pictures of kind `images`, spread over classes."""
THUMBNAIL = 96
SHOWN_CLASSES = 1000


@dataclass(frozen=True)
class Shown:
    """An episode on the page."""

    name: str
    facts: tuple[tuple[str, str], ...]
    preview: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Group:
    """Pictures of one class. `pictures` are (name, data URI)."""

    name: str
    count: int
    pictures: tuple[tuple[str, str], ...]


def dataset_page(dataset: Dataset, limit: int = 50) -> str:
    """The page as HTML, with the first `limit` episodes. One episode is in memory at a time, besides the page."""
    template = template_named("page.html")
    found, images = dataset.manifest, dataset.schema.kind == "images"
    shown = 0 if images else min(max(0, limit), len(dataset))
    classes = facts.classes(dataset)
    return template.render(
        manifest=found,
        title=facts.title(found),
        summary=facts.summary(dataset),
        size=facts.size_text(found.bytes),
        images=images,
        episodes=(_episode(dataset[position]) for position in range(shown)),
        shown=shown,
        left_out=0 if images else len(dataset) - shown,
        groups=gallery(dataset) if images else [],
        classes=classes[:SHOWN_CLASSES],
        more_classes=len(classes[SHOWN_CLASSES:]),
        splits=facts.split_rows(found),
        schema=facts.schema_rows(dataset.schema),
        outcomes=facts.outcome_rows(dataset),
        statistics=facts.statistics_rows(found),
        max_frames=MAX_FRAMES,
        provenance=facts.provenance_rows(found),
        skipped=found.skipped[: facts.SHOWN_SKIPS],
    )


def template_named(name: str) -> jinja2.Template:
    """A template of this package; everything it is given is escaped."""
    home = files("cards.html")
    loader = jinja2.FunctionLoader(lambda part: home.joinpath(part).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def write_page(dataset: Dataset, path: Path, limit: int = 50) -> Path:
    """Write the page to `path`, whole or not at all. DestinationError rather than replace what is no page of ours."""
    with locate(path=path):
        if isinstance(dataset.path, Path) and dataset.path.resolve() in path.resolve().parents:
            raise DestinationError("the page would lie inside the dataset; choose another place")
        if path.is_file() and MARK not in path.read_bytes()[:1000]:
            raise DestinationError("a file is there that is no page of vrl3data; choose another name")
    text = dataset_page(dataset, limit)
    with storage.writing(path):
        storage.replace_file(path, text.encode("utf-8"))
    return path


# -- episodes --------------------------------------------------------------------------------------------------


def _episode(sample: StoredSample) -> Shown:
    meta, schema = sample.meta, sample.dataset.schema
    sheet = sample.preview()
    names = [name for name in PLOTTED if name in schema and name not in sample.absent and not schema[name].is_image]
    plots = tuple(line_plot(name, sample[name], schema[name].names) for name in names)
    known = [
        ("steps", f"{sample.length:,}"),
        ("split", meta["split"]),
        *((key, facts.YES_NO[meta[key]]) for key in ("success", "terminated", "truncated")),
        ("final observation", facts.YES_NO[meta["final_observation"]]),
        ("origin", meta["origin"]),
        ("task", meta["task"]),
        ("subsets", meta["subsets"].replace(",", ", ")),
        ("absent", meta["absent"].replace(",", ", ")),
        ("lowest PSNR", f"{meta['psnr']:g} dB" if meta["psnr"] >= 0 else ""),
    ]
    told = tuple((key, plain(value)) for key, value in known if value not in ("", "not stated"))
    return Shown(plain(sample.name), told, data_uri(sheet) if sheet else "", plots)


def data_uri(picture: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")


# -- images ----------------------------------------------------------------------------------------------------


def gallery(dataset: Dataset) -> list[Group]:
    """At most `GALLERY` pictures: some of every class, or one each of classes spread evenly."""
    classes = facts.classes(dataset) or [(-1, "", len(dataset))]
    chosen = [classes[row] for row in _spread(len(classes), GALLERY)]
    per_class = GALLERY // max(1, len(chosen))
    groups = []
    for label, name, count in chosen:
        positions = _members(dataset, label, name) if name else np.arange(count)
        rows = [int(positions[row]) for row in _spread(len(positions), per_class)]
        groups.append(Group(name, count, tuple(_thumbnail(dataset[row]) for row in rows)))
    return groups


def _spread(count: int, most: int) -> Sequence[int]:
    """At most `most` of `count` numbers, spread evenly."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(count, most))})


def _members(dataset: Dataset, label: int, name: str) -> Array:
    """Positions of the images of a class; those without a label are told apart by their name."""
    column, value = ("label", label) if label >= 0 else ("class_name", name)
    return np.flatnonzero(pc.equal(dataset.index[column], value).to_numpy())


def _thumbnail(sample: StoredSample) -> tuple[str, str]:
    picture = Image.fromarray(_displayable(sample["image"][0]))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=80)
    return plain(sample.name), data_uri(out.getvalue())


def _displayable(image: Array) -> Array:
    """uint8, one or three channels; other ranges are stretched from their least to their greatest value."""
    pixels: Any = image if image.ndim == 3 else image.reshape(*image.shape[:2], -1)
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    numbers = np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = numbers.min(), numbers.max()
    return np.round((numbers - low) / max(high - low, 1e-12) * 255).astype(np.uint8)

"""README.md of a dataset: what the hub and `datasets` read, and what people should know before they use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cards.text import Row, license_fields, plain, render, word
from vrl3data import storage
from vrl3data.dataset import Dataset
from vrl3data.folder import locate_dataset
from vrl3data.manifest import Manifest, SplitInfo
from vrl3data.sample import feature_members
from vrl3data.schema import Feature, Schema
from vrl3data.stats import MAX_FRAMES, MAX_WIDTH

CARD = "README.md"
SHOWN_ENTRIES, SHOWN_SKIPS, SHOWN_WORDS = 4, 100, 10
"""Of a vector in the statistics, of skipped sources, of origins and tasks."""

_ARROW = {"string": "string", "int64": "int64", "double": "float64"}
YES_NO = {1: "yes", 0: "no", -1: "not stated", "": "not stated"}


def dataset_card(dataset: Dataset) -> str:
    """The card as Markdown. Reads manifest and index only, so it takes the same time for any number of frames."""
    found = dataset.manifest
    return render(
        "dataset_card.md",
        front_matter(dataset),
        manifest=found,
        title=title(found),
        summary=summary(dataset),
        snippet=_snippet_names(dataset),
        splits=split_rows(found),
        schema=schema_rows(dataset.schema),
        statistics=statistics_rows(found),
        max_frames=MAX_FRAMES,
        outcomes=outcome_rows(dataset),
        provenance=provenance_rows(found),
        mapped=mapping_rows(found),
        notes=[plain(note) for note in found.run.get("notes", [])],
        listed=found.content.get("listed", []),
        skipped=found.skipped[:SHOWN_SKIPS],
    )


def write_card(dataset: Dataset) -> Path:
    """Put the card into the dataset's directory, whole or not at all."""
    path = locate_dataset(str(dataset.path), to_write=True) / CARD
    with storage.writing(path):
        storage.replace_file(path, dataset_card(dataset).encode("utf-8"))
    return path


# -- front matter for the hub and for `datasets` ---------------------------------------------------------------


def front_matter(dataset: Dataset) -> dict[str, Any]:
    """The YAML between the two `---`."""
    found, episodes = dataset.manifest, dataset.schema.kind == "episodes"
    return {
        **license_fields(found.license),
        "pretty_name": title(found),
        "task_categories": ["robotics", "reinforcement-learning"] if episodes else ["image-classification"],
        "tags": ["vrl3data", *(["offline-rl", "imitation-learning"] if episodes else ["pretraining"])],
        "size_categories": [size_category(found.steps if episodes else found.samples)],
        **_configs(found),
        "dataset_info": {"features": hub_features(dataset)},
    }


def _configs(found: Manifest) -> dict[str, Any]:
    """Which files belong to which split; a shard that is still being written is none of them."""
    finished = [name for name, split in found.splits.items() if any(s.name.endswith(".tar") for s in split.shards)]
    data_files = [{"split": name, "path": f"data/{name}-*.tar"} for name in finished]
    if not data_files or found.is_linked:  # other readers take linked shards whole: every split would be everything
        return {}
    # `datasets` finds its cache by the folder's name and this block alone: without the fingerprint in it, a second
    # dataset of the same name, or one that was made anew, would silently load as the first.
    described = f"fingerprint {found.fingerprint}"
    return {"configs": [{"config_name": "default", "description": described, "data_files": data_files}]}


def size_category(count: int) -> str:
    """The hub's bucket for a number of rows."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    for power, name in enumerate(names):
        if count < 10 ** (power + 3):
            return f"{names[power - 1]}<n<{name}" if power else f"n<{name}"
    return "n>1T"


def hub_features(dataset: Dataset) -> list[dict[str, Any]]:
    """`dataset_info.features`, in the order of the members. Left to guess, `datasets` is slow and finds lists."""
    schema = dataset.schema
    found: list[dict[str, Any]] = [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]
    for feature in schema.features:
        body, *offsets = feature_members(feature, schema)
        found.append({"name": body, **_hub_type(feature, dataset)})
        found += [{"name": member, "list": "uint64"} for member in offsets]
    found += [{"name": name, "dtype": "image" if name.endswith(".jpg") else "string"} for name in schema.extras]
    return [*found, {"name": "meta.json", "struct": _commit_fields(dataset)}]


def _hub_type(feature: Feature, dataset: Dataset) -> dict[str, Any]:
    if feature.codec_name == "text":
        return _label_type(feature, dataset)
    if feature.codec_name != "raw":
        return {"dtype": "image" if dataset.schema.kind == "images" else "binary"}
    rank = 1 + len(feature.shape)
    if 2 <= rank <= 5 and min(feature.shape) > 0:
        return {"dtype": {f"array{rank}_d": {"shape": [None, *feature.shape], "dtype": feature.dtype}}}
    # Nested lists are slower, but have neither a highest rank nor need to know the sizes.
    nested: Any = feature.dtype
    for _ in range(rank):
        nested = {"list": nested}
    return dict(nested)


def _label_type(feature: Feature, dataset: Dataset) -> dict[str, Any]:
    """Class names where `datasets` can take them: it refuses names that are not unique and labels without a name."""
    names = [plain(name) for name in feature.names]
    highest = dataset.index["label"].to_numpy().max(initial=-1)
    if all(names) and len(set(names)) == len(names) > highest:
        return {"dtype": {"class_label": {"names": {str(label): name for label, name in enumerate(names)}}}}
    return {"dtype": feature.dtype}


def _commit_fields(dataset: Dataset) -> list[dict[str, str]]:
    """The keys of meta.json in their order: the index has all of them but five (FORMAT.md 6, 7)."""
    columns = [column for column in dataset.index.table().schema if "." not in column.name]
    kinds = {column.name: _ARROW[str(column.type)] for column in columns if column.name not in ("key", "shard")}
    del kinds["digest"]
    kinds |= dict.fromkeys(("source_meta", "digest", "members", "sizes", "xxh3_128", "meta_xxh3_128"), "string")
    return [{"name": name, "dtype": kind} for name, kind in kinds.items()]


# -- facts, shared with the page -------------------------------------------------------------------------------


def title(found: Manifest) -> str:
    """Its name; the shards alone do not tell it."""
    return plain(found.name) or f"dataset {found.dataset_id[:8]}"


def counted(number: int, word: str, plural: str = "") -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def size_text(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def summary(dataset: Dataset) -> str:
    """What it is, in a paragraph."""
    found, episodes = dataset.manifest, dataset.schema.kind == "episodes"
    parts = [f"{name} ({split.samples:,})" for name, split in found.splits.items()]
    text = counted(len(dataset), "episode" if episodes else "image")
    text += f" with {counted(found.steps, 'step')}" if episodes else ""
    names = classes(dataset)
    text += f" of {counted(len(names), 'class', 'classes')}" if names else ""
    text += f" in the {'split' if len(parts) == 1 else 'splits'} {', '.join(parts)}." if parts else "."
    if episodes and dataset.schema.cameras:
        text += f" Cameras: {', '.join(f'{c.name} {_shape(c.shape[:2])}' for c in dataset.schema.cameras)}."
    source = plain(found.provenance.get("source", {}).get("name", ""))
    return text + (f" Made from {source}." if source else "")


def classes(dataset: Dataset) -> list[tuple[int, str, int]]:
    """(label, name, number of images) of each class that occurs; nothing for episodes and unlabelled images."""
    if dataset.schema.kind != "images":
        return []
    names = dataset.schema["cls"].names if "cls" in dataset.schema else ()
    keys = ["label", "class_name"]
    found = []
    for row in dataset.index.table().select(keys).group_by(keys).aggregate([([], "count_all")]).to_pylist():
        label, name = row["label"], row["class_name"]
        if label >= 0 or name:
            known = names[label] if 0 <= label < len(names) else f"class {label}"
            found.append((label, plain(name or known), row["count_all"]))
    return sorted(found)


def split_rows(found: Manifest) -> list[Row]:
    """Split, samples, steps, shards, size."""
    rows: list[Row] = []
    for name, split in found.splits.items():
        counts = (f"{number:,}" for number in (split.samples, split.steps, len(split.shards)))
        rows.append((name, *counts, size_text(sum(shard.bytes for shard in split.shards))))
    return rows


def _shape(shape: Sequence[int]) -> str:
    return " x ".join("any" if size < 0 else str(size) for size in shape) or "scalar"


def schema_rows(schema: Schema) -> list[Row]:
    """Name, dtype, shape of a row, rows, codec, unit, description."""
    rows: list[Row] = []
    for feature in schema.features:
        says = {"encoder": feature.encoder, "quaternion": feature.quaternion, "actions": feature.representation}
        notes = [plain(feature.description), *(f"{key}: {plain(value)}" for key, value in says.items() if value)]
        codec = plain(feature.codec) + ("" if feature.lossless else " (lossy)")
        about = "; ".join(filter(None, notes))
        layout = (feature.name, feature.dtype, _shape(feature.shape), feature.rows)
        rows.append((*layout, codec, plain(feature.unit), about))
    return rows


def statistics_rows(found: Manifest) -> list[Row]:
    """Feature, mean, std, min, max, note; empty if there are none for this content."""
    if found.stats.get("fingerprint") != found.fingerprint:
        return []
    rows: list[Row] = []
    for name, values in found.stats["features"].items():
        numbers = [_numbers(values.get(key, ())) for key in ("mean", "std", "min", "max")]
        rows.append((name, *numbers, _statistics_note(found.schema[name], values)))
    return rows


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:SHOWN_ENTRIES])
    return f"{shown}, …" if len(values) > SHOWN_ENTRIES else shown


def _statistics_note(feature: Feature, values: Mapping[str, Any]) -> str:
    """What the numbers come from, and what is odd about them."""
    rows, width = values["rows"], len(values.get("mean", ()))
    pixels = int(np.prod(feature.shape[:2])) if feature.is_image and min(feature.shape) > 0 else 0
    if pixels:
        notes = [counted(rows // pixels, "frame")]
    else:
        wide = int(np.prod(feature.shape)) > MAX_WIDTH
        notes = [counted(rows, "pixel" if feature.is_image else "number" if wide else "row")]
    constant = sum(low == high for low, high in zip(values.get("min", ()), values.get("max", ()), strict=True))
    if width > SHOWN_ENTRIES:
        notes.append(f"{width} entries")
    if constant:
        notes.append(f"{constant} constant" if width > 1 else "constant")
    if values.get("nan"):
        notes.append(f"{values['nan']:,} not finite, left out")
    return ", ".join(notes)


def outcome_rows(dataset: Dataset) -> list[Row]:
    """How the episodes ended and who made them; nothing for images."""
    if dataset.schema.kind != "episodes" or not len(dataset):
        return []
    rows: list[Row] = []
    for key in ("success", "terminated", "truncated", "final_observation", "origin", "task"):
        counts = [(item["counts"], item["values"]) for item in dataset.index[key].value_counts().to_pylist()]
        shown = sorted(counts, key=lambda item: -item[0])[:SHOWN_WORDS]
        words = ", ".join(f"{YES_NO.get(value) or plain(value)}: {count:,}" for count, value in shown)
        rows.append((key.replace("_", " "), words))
    lengths = dataset.index["length"].to_numpy()
    rows.append(("steps", f"{lengths.min():,} to {lengths.max():,}, median {np.median(lengths):,.0f}"))
    return rows


def provenance_rows(found: Manifest) -> list[Row]:
    """What it was made from and how; only what is known."""
    made, source = found.provenance, found.provenance.get("source", {})
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    options = "; ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in made["options"].items()
                        if key != "mapping")  # fmt: skip
    renderers = sorted({feature.renderer for feature in found.schema.features} - {""})
    lossy = found.lossy and (
        f"lowest PSNR {found.lossy['psnr_min']:g} dB, mean {found.lossy['psnr_mean']:g} dB, greatest difference "
        f"{found.lossy['max_error']:g}, over {counted(found.lossy['samples'], 'sample')}"
    )
    amount = f"{counted(source['files'], 'file')}, {size_text(source['bytes'])}" if source.get("files") else ""
    rows = [
        ("tool", made.get("tool")),
        ("converter", f"{made.get('converter')}, version {made.get('converter_version')}"),
        ("versions", versions),
        ("options", options),
        ("source", source.get("name")),
        ("source files", amount),
        ("source identity", source.get("identity")),
        ("content sha256", found.content.get("sha256")),
        ("renderer", "; ".join(renderers)),
        ("measured loss", lossy),
        ("dataset id", found.dataset_id),
        ("fingerprint", found.fingerprint),
    ]
    return [(label, plain(value)) for label, value in rows if value]


def mapping_rows(found: Manifest) -> list[Row]:
    """Which fields of the source became which feature, and which became none."""
    mapping = found.provenance["options"].get("mapping")
    if not isinstance(mapping, dict):
        return []
    rules = [rule for rule in mapping.get("features", []) if isinstance(rule, dict)]
    rows = [(str(rule.get("name")), ", ".join(map(str, rule.get("source", [])))) for rule in rules]
    rows += [("(none)", ", ".join(map(str, mapping["dropped"])))] if mapping.get("dropped") else []
    return [(plain(name), plain(sources)) for name, sources in rows]


def _snippet_names(dataset: Dataset) -> dict[str, Any]:
    """What the examples of the card read: the action if there is one, else the first array."""
    schema = dataset.schema
    raw = [feature.name for feature in schema.features if feature.codec_name == "raw"]
    name = "action" if "action" in raw else [*raw, *schema.names][0]
    split, info = next(iter(dataset.manifest.splits.items()), ("train", SplitInfo()))
    shard = info.shards[0].name if info.shards else f"{split}-000000.tar"
    return {
        "feature": Markup(name),
        "dtype": Markup(schema[name].dtype),
        "member": Markup(feature_members(schema[name], schema)[0]),
        "split": word(split),
        "shard": word(shard),
        "raw": bool(raw),
        "images": schema.kind == "images",
    }

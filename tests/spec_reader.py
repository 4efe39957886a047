"""A reader of the vrl3data format 1.0, written from FORMAT.md alone (hashes unchecked)."""
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import spec_units

BODY = {"raw": ("npy", "npy"), "jpeg": ("mjpg", "jpg"), "png": ("pngs", "png"), "text": ("", "cls"),
        "dzst": ("dzst", ""), "h264": ("h264", ""), "av1": ("av1", "")}
HAS = {"major:1", "preview.jpg", "rows:step", "rows:state", "rows:episode", "rows:stream", *map("codec:".__add__, BODY)}

def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and payload of each whole member; a torn tail ends an unfinished shard, all else is damage."""
    data, at, part = path.read_bytes(), 0, path.suffix == ".part"
    end = min(len(data), -(-len(data.rstrip(b"\0")) // 512) * 512) if part else len(data) - 1024
    while at + 512 <= end:
        info = tarfile.TarInfo(data[at : at + 100].rstrip(b"\0").decode("ascii"))
        info.size = int(data[at + 124 : at + 135], 8)
        if data[at : at + 512] != info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"):
            raise ValueError(f"{path.name}: damaged header at byte {at}")
        start, at = at + 512, at + 512 + -(-info.size // 512) * 512
        if at <= end:
            yield info.name, data[start : start + info.size]
    if not part and data[at:] != bytes(1024):
        raise ValueError(f"{path.name}: damaged end")

def decode(feature: dict, parts: dict[str, bytes]) -> np.ndarray:
    """The array, rows first; the picture of kind images is a single unit, with neither name nor offsets."""
    name, codec = feature["name"], feature["codec"].split(":")[0]
    body = parts.get(f"{name}.{BODY[codec][0]}") or parts[BODY[codec][1]]
    if codec in ("raw", "text"):
        return np.load(io.BytesIO(body)) if codec == "raw" else np.array([int(body)], np.int64)
    starts = [0, len(body)] if BODY[codec][1] in parts else np.load(io.BytesIO(parts[f"{name}.offsets.npy"]))
    units = (body[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True))
    return np.concatenate([spec_units.rows(unit, codec, feature["dtype"], feature["shape"]) for unit in units])

def read(directory: str | Path) -> list[dict]:
    """Every sample: key, split, meta, values, parts (its members' bytes) and what __meta__ says of it."""
    samples, parts = [], {}
    for path in sorted(p for e in ("", ".part") for p in Path(directory).glob(f"data/[!.]*-??????.tar{e}")):
        for name, payload in members(path):
            parts[name[10:]] = payload  # after the nine digits and the dot
            if name == "__meta__":
                head, parts = json.loads(payload), {}
                needs = {f"major:{head['format']['major']}", *head["requires"], *head["schema"]["extras"]}
                features, keys = head["schema"]["features"], ("codec", "rows")
                needs |= {f"{key}:{feature[key].split(':')[0]}" for feature in features for key in keys}
                if needs - HAS:
                    raise ValueError(f"{path.name}: unknown to this reader: {sorted(needs - HAS)}")
            elif name[10:] == "meta.json":
                meta, own, parts = json.loads(parts.pop("meta.json")), parts, {}
                sizes = ",".join(str(len(part)) for part in own.values())
                if [meta["members"], meta["sizes"]] != [",".join(own), sizes]:
                    raise ValueError(f"{path.name}: sample {name[:9]} is not as it says it is")
                values = {f["name"]: decode(f, own) for f in features}
                samples.append({**head, "key": name[:9], "meta": meta, "values": values, "parts": own})
    return samples

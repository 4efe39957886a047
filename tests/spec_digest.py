"""The digest of section 9 of FORMAT.md, written from that page alone, of samples read by spec_reader."""
import hashlib
import json
from typing import Any

OMITTED = ("split", "subsets", "psnr", "max_error", "digest", "members", "sizes", "xxh3_128", "meta_xxh3_128")


def entry(feature: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    """What the digest says of a feature: the array of a lossless one, the coded body of a lossy one."""
    name, codec = feature["name"], feature["codec"]
    if codec in ("raw", "png", "dzst", "text"):
        array = sample["values"][name]
        data = array.astype(array.dtype.newbyteorder("<")).tobytes("C")
        about = {"dtype": array.dtype.name, "shape": list(array.shape)}
    else:
        suffix = codec.split(":")[0].replace("jpeg", "mjpg")
        data = sample["parts"][f"{name}.{suffix}" if f"{name}.{suffix}" in sample["parts"] else "jpg"]
        about = {"codec": codec}
    return {"name": name, **about, "sha256": hashlib.sha256(data).hexdigest()}


def digest(sample: dict[str, Any], schema: dict[str, Any]) -> str:
    """What `digest` in meta.json must be."""
    features = [entry(feature, sample) for feature in schema["features"]]
    for name in schema["extras"]:
        if name != "preview.jpg":
            features.append({"name": name, "sha256": hashlib.sha256(sample["parts"][name]).hexdigest()})
    meta = {key: value for key, value in sample["meta"].items() if key not in OMITTED}
    text = json.dumps({"features": features, "meta": meta}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()

"""Sources of data: anything -> episodes. A new kind is one module or package and one line in `KINDS`."""

from __future__ import annotations

KINDS = {
    "adroit": "converters.adroit:AdroitConverter",
    "imagenet": "converters.imagenet:ImagenetConverter",
    "minari": "converters.minari.converter:MinariConverter",
    "aloha": "converters.aloha:AlohaConverter",
    "d4rl": "converters.d4rl:D4rlConverter",
    "zarr": "converters.zarr_buffer.converter:ZarrConverter",
}
"""name -> the converter's class. Its docstring's first line says what it reads."""

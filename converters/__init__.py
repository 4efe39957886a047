"""Sources of data: anything -> episodes. A new kind is one module or package and one line in `KINDS`."""

from __future__ import annotations

KINDS = {
    "adroit": "converters.adroit:AdroitConverter",
    "robomimic": "converters.robomimic.converter:RobomimicConverter",
    "lerobot": "converters.lerobot:LerobotConverter",
    "minari": "converters.minari.converter:MinariConverter",
    "d4rl": "converters.d4rl:D4rlConverter",
    "zarr": "converters.zarr_buffer.converter:ZarrConverter",
    "aloha": "converters.aloha:AlohaConverter",
    "rlds": "converters.rlds.converter:RldsConverter",
    "imagenet": "converters.images.imagenet:ImagenetConverter",
    "image-table": "converters.images.table:TableConverter",
    "webdataset": "converters.images.webdataset:WebdatasetConverter",
    "log": "converters.logs.converter:LogConverter",
    "hdf5": "converters.generic_hdf5:Hdf5Converter",
}
"""name -> the converter's class. Its docstring's first line says what it reads.

Asked in this order what a source is: `hdf5`, last, takes any file of that format that no other kind knows.
"""

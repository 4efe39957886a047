"""Sources of data: anything -> episodes. A new kind is one module or package and one line in `KINDS`."""

from __future__ import annotations

KINDS = {
    "adroit": "converters.adroit:AdroitConverter",
    "imagenet": "converters.images.imagenet:ImagenetConverter",
    "image-table": "converters.images.table:TableConverter",
    "webdataset": "converters.images.webdataset:WebdatasetConverter",
}
"""name -> the converter's class. Its docstring's first line says what it reads."""

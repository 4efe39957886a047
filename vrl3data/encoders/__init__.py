"""Encoders: images -> feature vectors. A new architecture is one file or function and one line in `ARCHITECTURES`."""

from __future__ import annotations

ARCHITECTURES = {
    "resnet6_32channel": "vrl3data.encoders.resnet:resnet6_32channel",
    "resnet6_64channel": "vrl3data.encoders.resnet:resnet6_64channel",
    "resnet10_32channel": "vrl3data.encoders.resnet:resnet10_32channel",
    "resnet10_64channel": "vrl3data.encoders.resnet:resnet10_64channel",
    "resnet18_32channel": "vrl3data.encoders.resnet:resnet18_32channel",
    "resnet18_64channel": "vrl3data.encoders.resnet:resnet18_64channel",
}
"""name -> a function of the number of input channels that builds the network."""

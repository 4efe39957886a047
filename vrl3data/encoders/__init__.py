"""Encoders: images -> feature vectors. A new architecture is one file or function and one line in `ARCHITECTURES`."""

from __future__ import annotations

ARCHITECTURES = {
    "resnet6_32channel": "vrl3data.encoders.resnet:resnet6_32channel",
    "resnet6_64channel": "vrl3data.encoders.resnet:resnet6_64channel",
    "resnet10_32channel": "vrl3data.encoders.resnet:resnet10_32channel",
    "resnet10_64channel": "vrl3data.encoders.resnet:resnet10_64channel",
    "resnet18_32channel": "vrl3data.encoders.resnet:resnet18_32channel",
    "resnet18_64channel": "vrl3data.encoders.resnet:resnet18_64channel",
    "vit-micro12": "vrl3data.encoders.vit:vit_micro12",
    "vit-tiny12": "vrl3data.encoders.vit:vit_tiny12",
}
"""name -> a function of the number of input channels that builds the network.

A network has `feature_dim`, and `stem`, the one convolution that sees channels: inflation works on it."""

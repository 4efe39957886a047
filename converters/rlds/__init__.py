"""RLDS and Open X-Embodiment sets: TFRecord files of tf.train.Example messages, read without TensorFlow."""

from __future__ import annotations

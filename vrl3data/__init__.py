"""Datasets and encoders for visual reinforcement learning, after VRL3.

The public names are listed in `_PUBLIC` and imported on first use, so `import vrl3data` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cards.hub import pull as pull
    from cards.hub import push as push
    from pretrain.inflate import inflate as inflate
    from pretrain.train import pretrain_hilp as pretrain_hilp
    from pretrain.train import pretrain_mae as pretrain_mae
    from pretrain.train import pretrain_supervised as pretrain_supervised
    from vrl3data.app import convert as convert
    from vrl3data.app import export as export
    from vrl3data.dataset import Dataset as Dataset
    from vrl3data.dataset import open_dataset as open
    from vrl3data.encoders.encoder import Encoder as Encoder
    from vrl3data.loader import load_episodes as load_episodes
    from vrl3data.mixing import mix as mix
    from vrl3data.record import Recorder as Recorder
    from vrl3data.record import RecordOptions as RecordOptions
    from vrl3data.replay import BatchSpec as BatchSpec
    from vrl3data.replay import Replay as Replay
    from vrl3data.rl.evaluation import evaluate as evaluate
    from vrl3data.rl.policy import Policy as Policy
    from vrl3data.rl.train import train as train
    from vrl3data.schema import Episode as Episode
    from vrl3data.schema import Feature as Feature
    from vrl3data.schema import Schema as Schema
    from vrl3data.validation import validate as validate
    from vrl3data.writer import Writer as Writer

__version__ = "0.1.0"

_PUBLIC = {
    "open": "vrl3data.dataset:open_dataset",
    "Dataset": "vrl3data.dataset:Dataset",
    "Episode": "vrl3data.schema:Episode",
    "Schema": "vrl3data.schema:Schema",
    "Feature": "vrl3data.schema:Feature",
    "Writer": "vrl3data.writer:Writer",
    "Encoder": "vrl3data.encoders.encoder:Encoder",
    "Recorder": "vrl3data.record:Recorder",
    "convert": "vrl3data.app:convert",
    "export": "vrl3data.app:export",
    "RecordOptions": "vrl3data.record:RecordOptions",
    "validate": "vrl3data.validation:validate",
    "load_episodes": "vrl3data.loader:load_episodes",
    "BatchSpec": "vrl3data.replay:BatchSpec",
    "mix": "vrl3data.mixing:mix",
    "Replay": "vrl3data.replay:Replay",
    "pretrain_supervised": "pretrain.train:pretrain_supervised",
    "pretrain_hilp": "pretrain.train:pretrain_hilp",
    "pretrain_mae": "pretrain.train:pretrain_mae",
    "inflate": "pretrain.inflate:inflate",
    "train": "vrl3data.rl.train:train",
    "Policy": "vrl3data.rl.policy:Policy",
    "evaluate": "vrl3data.rl.evaluation:evaluate",
    "push": "cards.hub:push",
    "pull": "cards.hub:pull",
}

__all__ = [
    "BatchSpec",
    "Dataset",
    "Encoder",
    "Episode",
    "Feature",
    "Policy",
    "RecordOptions",
    "Recorder",
    "Replay",
    "Schema",
    "Writer",
    "convert",
    "evaluate",
    "export",
    "inflate",
    "load_episodes",
    "mix",
    "open",
    "pretrain_hilp",
    "pretrain_mae",
    "pretrain_supervised",
    "pull",
    "push",
    "train",
    "validate",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vrl3data' has no attribute {name!r}")
    from vrl3data.guard import check_neighbours

    check_neighbours()
    module, attribute = _PUBLIC[name].split(":")
    value: object = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

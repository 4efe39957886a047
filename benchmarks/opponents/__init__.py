"""What benchmarks/loader.py measures, one file per opponent; each runs in a process of its own (serve.py)."""

from __future__ import annotations

from dataclasses import dataclass

from opponents.common import Layout


@dataclass(frozen=True)
class Entry:
    """One setting of one side. `goal`: how many times as fast ours from mapped shards is to be (DESIGN.md 8)."""

    side: str
    setting: str
    target: str
    """module:class in this package."""
    goal: float | None = None
    best: bool = True
    """Whether this setting was the fastest, or within noise of it; the others are measured with `--settings all`."""
    layouts: tuple[Layout, ...] = ("frames", "channels")
    needs: tuple[str, ...] = ()
    """Packages beside ours; the process runs in the other environment if ours lacks one."""


ENTRIES = (
    Entry("ours", "mmap", "ours:Ours"),
    Entry("ours", "ram", "ours:Ours"),
    Entry("ours", "stream", "ours:Ours", None, False),
    Entry("ours", "stream, dzst", "ours:Ours"),
    Entry("ours", "stream, dzst, 8 MB kept", "ours:Ours", None, False),
    Entry("fancy indexing", "same arrays in memory", "fancy:SameArrays", 0.9),
    Entry("fancy indexing", "planes in memory", "fancy:PlanesFirst", layouts=("channels",)),
    Entry("h5py, handles kept", "contiguous", "hdf5:Kept", 8),
    Entry("h5py, handles kept", "chunks of 1 frame", "hdf5:Kept", 8, False),
    Entry("h5py, handles kept", "chunks of 16 frames", "hdf5:Kept", 8),
    Entry("h5py, by path", "images only", "hdf5:ByPath", 25),
    Entry("h5py, by path", "all features", "hdf5:ByPath", 25, False),
    Entry("np.load per window", "stored", "npz:PerWindow", 300),
    Entry("np.load per window", "deflated", "npz:PerWindow", 300, False),
    Entry("DrQ-v2's loader", "in process", "drqv2:DrQv2", 8),
    Entry("DrQ-v2's loader", "one worker", "drqv2:DrQv2", 8, False),
    Entry("webdataset", "npy", "tar:Plain", None, True, needs=("webdataset",)),
    Entry("webdataset", "npy, default collation", "tar:Plain", None, False, needs=("webdataset",)),
    Entry("mp4 g=2, torchcodec", "grouped by episode", "mp4:TorchCodec", 80, True, needs=("torchcodec", "av")),
    Entry("mp4 g=2, torchcodec", "window by window", "mp4:TorchCodec", 80, False, needs=("torchcodec", "av")),
    Entry("mp4 g=2, torchcodec", "grouped, approximate", "mp4:TorchCodec", 80, False, needs=("torchcodec", "av")),
    Entry("mp4 g=2, PyAV", "seeking", "mp4:Seeking", None, False, needs=("av",)),
    Entry("robomimic", "hdf5_cache_mode all", "robomimic_set:Sequences", None, True, needs=("robomimic",)),
    Entry("robomimic", "hdf5_cache_mode low_dim", "robomimic_set:Sequences", None, False, needs=("robomimic",)),
    Entry("robomimic", "hdf5_cache_mode None", "robomimic_set:Sequences", None, False, needs=("robomimic",)),
    Entry("minari", "each episode once", "minari_set:Episodes", None, True, needs=("minari",)),
    Entry("minari", "arrow, each episode once", "minari_set:Episodes", None, False, needs=("minari",)),
    Entry("minari", "an episode per window", "minari_set:Episodes", None, False, needs=("minari",)),
)

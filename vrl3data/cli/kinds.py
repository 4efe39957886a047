"""The commands of `vrl3data convert`: one for each kind, with the options that are its own."""

from __future__ import annotations

from typing import Any

import click

from vrl3data.cli.convert import convert, run_kind
from vrl3data.cli.options import episode_options, picture_options, shared_options

__all__ = ["convert"]


@convert.command()
@shared_options
@click.option("--task", type=click.Choice(["auto", "door", "hammer", "pen", "relocate"]), show_default="auto",
              help="Refuse files of another task.")  # fmt: skip
@click.option("--camera", multiple=True, help="Camera to render; repeat for more.", show_default="VRL3's of the task")
@click.option("--image-size", type=int, help="Height and width in pixels.", show_default="84")
@click.option("--look", type=click.Choice(["vrl3", "gymnasium"]), help="Cameras and colours.", show_default="vrl3")
@click.option("--render", type=click.Choice(["exact", "fast"]), show_default="exact",
              help="fast: a coarser shadow map, twice as fast at 34-37 dB.")  # fmt: skip
@click.option("--rewards", type=click.Choice(["recorded", "vrl3", "gymnasium"]), show_default="recorded",
              help="Which rewards go into `reward`; the recorded ones are always kept.")  # fmt: skip
@click.option("--origin", type=click.Choice(["auto", "human", "policy"]), show_default="auto",
              help="Who acted; auto knows published files by their hash.")  # fmt: skip
@click.pass_context
def adroit(ctx: click.Context, /, **_: Any) -> int:
    """Adroit demonstrations in DAPG pickles; every recorded step is set in the simulator and rendered."""
    return run_kind(ctx, "adroit")


@convert.command()
@shared_options
@episode_options
@click.option(
    "--dones",
    type=click.Choice(["auto", "success", "end", "both"]),
    show_default="auto",
    help="What dones means: states of success, the last step, or both; auto infers it and says from what.",
)
@click.option(
    "--next-obs",
    type=click.Choice(["auto", "keep"]),
    show_default="auto",
    help="auto: its last row becomes the final observation, if the others are obs one step later.",
)
@click.option(
    "--depth",
    type=click.Choice(["auto", "metres", "keep"]),
    show_default="auto",
    help="Whether depth of floats is in metres, as robomimic writes it; keep stores it as it is.",
)
@click.option("--depth-scale", type=float, help="Metres per stored count of depth.", show_default="0.001")
@click.option(
    "--render",
    type=click.Choice(["exact", "fast"]),
    show_default="not",
    help="Draw the states that robosuite recorded; --camera and --image-size (84) say how.",
)
@click.pass_context
def robomimic(ctx: click.Context, /, **_: Any) -> int:
    """robomimic HDF5 files, also of Isaac Lab, LIBERO and MimicGen, and robosuite's raw demonstrations.

    Example: vrl3data convert robomimic image_v15.hdf5 out/lift
    """
    return run_kind(ctx, "robomimic")


@convert.command()
@shared_options
@episode_options
@click.pass_context
def lerobot(ctx: click.Context, /, **_: Any) -> int:
    """LeRobot sets of versions 1 to 3, with their videos.

    SOURCE is the folder of one set; videos need: pip install "vrl3data[video]".

    Example: vrl3data convert lerobot so101_pick_place out/pick-place --image-size 128
    """
    return run_kind(ctx, "lerobot")


@convert.command()
@shared_options
@episode_options
@click.pass_context
def minari(ctx: click.Context, /, **_: Any) -> int:
    """Minari datasets in HDF5, Arrow or Parquet: nested spaces, final observations, JPEG pictures.

    SOURCE is the folder of one dataset. Example: vrl3data convert minari ~/.minari/datasets/D4RL/door/human-v2 out/door
    """
    return run_kind(ctx, "minari")


@convert.command()
@shared_options
@episode_options
@click.option("--episode-length", type=click.IntRange(1), show_default="not known",
              help="Time limit in steps, for old files without timeouts; 1000 for D4RL's MuJoCo tasks.")  # fmt: skip
@click.option("--cut", type=click.Choice(["flags", "timeouts"]), show_default="flags",
              help="timeouts: not at terminals, which AntMaze sets at every step in the goal.")  # fmt: skip
@click.pass_context
def d4rl(ctx: click.Context, /, **_: Any) -> int:
    """D4RL's flat HDF5 files, cut into episodes where terminals and timeouts say so.

    Example: vrl3data convert d4rl hopper_medium-v2.hdf5 out/hopper
    """
    return run_kind(ctx, "d4rl")


@convert.command(name="zarr")
@shared_options
@episode_options
@click.pass_context
def zarr_buffer(ctx: click.Context, /, **_: Any) -> int:
    """Zarr replay buffers of Diffusion Policy and UMI, in folders or .zarr.zip files.

    Example: vrl3data convert zarr pusht_cchi_v7_replay.zarr out/pusht
    """
    return run_kind(ctx, "zarr")


@convert.command()
@shared_options
@episode_options
@click.option("--rate", type=float, show_default="50 where the layout is ALOHA's own",
              help="Steps per second, which the files do not state; 0: not known.")  # fmt: skip
@click.option("--color", type=click.Choice(["rgb", "bgr"]), show_default="rgb",
              help="bgr: the recorder swapped red and blue.")  # fmt: skip
@click.pass_context
def aloha(ctx: click.Context, /, **_: Any) -> int:
    """ALOHA and ACT episodes, one HDF5 file each: joints, actions, cameras raw or as JPEG.

    Example: vrl3data convert aloha aloha_fold_towel out/towel
    """
    return run_kind(ctx, "aloha")


@convert.command()
@shared_options
@episode_options
@click.option("--last-step", type=click.Choice(["auto", "action", "observation"]), show_default="auto",
              help="Whether the last step of a record has an action or is only the final observation; auto looks at "
              "the first records.")  # fmt: skip
@click.pass_context
def rlds(ctx: click.Context, /, **_: Any) -> int:
    """RLDS and Open X sets in TFRecord files, as TFDS lays them out; no TensorFlow is needed.

    Example: vrl3data convert rlds bridge_dataset/1.0.0 out/bridge
    """
    return run_kind(ctx, "rlds")


@convert.command("log")
@shared_options
@episode_options
@click.option("--control", metavar="TOPIC|HZ", show_default="slowest camera, else slowest regular topic",
              help="What makes the steps: the messages of a topic, or a rate such as 20.")  # fmt: skip
@click.option("--align", type=click.Choice(["hold", "nearest", "linear"]), show_default="hold",
              help="How other streams get onto the steps. linear: numbers are interpolated, rotations by slerp; "
              "actions, pictures and events are held.")  # fmt: skip
@click.option("--tolerance", type=float, help="Seconds that a message may be away from its step.", show_default="any")
@click.option("--cut", metavar="time:S|gap:S|topic:/NAME", show_default="a log is an episode",
              help="Where episodes end: after so many seconds, at silence, or while a topic says true.")  # fmt: skip
@click.option("--clock", type=click.Choice(["auto", "header", "publish", "log"]), show_default="auto",
              help="Which stamps place the messages; auto: the header's where they can be trusted.")  # fmt: skip
@click.option("--own-rate/--one-rate", help="Every topic but the control keeps its rate.", show_default="one-rate")
@click.option("--on-sync", type=click.Choice(["warn", "refuse"]), show_default="warn",
              help="refuse: an episode whose sync report has errors is not converted.")  # fmt: skip
@click.pass_context
def robot_log(ctx: click.Context, /, **_: Any) -> int:
    """MCAP files, ROS 1 bags and ROS 2 recordings; no ROS is needed. Look first: vrl3data inspect-log FILE.

    Example: vrl3data convert log pick_place.mcap out/pick --control 20
    """
    return run_kind(ctx, "log")


@convert.command()
@shared_options
@picture_options
@click.pass_context
def imagenet(ctx: click.Context, /, **_: Any) -> int:
    """ImageNet as downloaded (tar files, devkit), unpacked, as Kaggle packs it; and class folders of pictures.

    The tar files are read where they are: vrl3data convert imagenet ILSVRC2012_img_train.tar
    ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz out/imagenet, or the folder that holds them.
    """
    return run_kind(ctx, "imagenet")


@convert.command("image-table")
@shared_options
@picture_options
@click.option("--image-column", help="Column with the pictures.", show_default="by its type")
@click.option("--label-column", help="Column with the labels.", show_default="by its type or name")
@click.pass_context
def image_table(ctx: click.Context, /, **_: Any) -> int:
    """Parquet or arrow files with pictures and labels, as Hugging Face's datasets keep them."""
    return run_kind(ctx, "image-table")


@convert.command()
@shared_options
@picture_options
@click.pass_context
def webdataset(ctx: click.Context, /, **_: Any) -> int:
    """Tar files of KEY.jpg and KEY.cls (and KEY.json), as webdataset keeps them."""
    return run_kind(ctx, "webdataset")


@convert.command("hdf5")
@shared_options
@episode_options
@click.option("--rate", type=float, help="Steps per second; 0: not known, and no time stamps.", show_default="0")
@click.pass_context
def generic_hdf5(ctx: click.Context, /, **_: Any) -> int:
    """HDF5 files of no known layout: a group per episode, numbered arrays (actions_0, ...), or a file per episode.

    Example: vrl3data convert hdf5 runs.h5 out/runs --write-mapping map.toml
    """
    return run_kind(ctx, "hdf5")

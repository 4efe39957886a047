"""The one place that imports mujoco and makes a GL context.

Nothing here runs at import: mujoco is imported by `load_mujoco`, a context is made by `make_renderer`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from vrl3data.errors import ConfigError, MissingExtra, did_you_mean

if TYPE_CHECKING:
    import mujoco

# Width of the shadow map in texels, the one cost that counts in software: it is 80 % of a frame.
# `exact` keeps what the model's XML says (4096 for Adroit); `fast` is 2x faster at 34-40 dB.
RENDER_PROFILES: dict[str, int | None] = {"exact": None, "fast": 1024, "no-shadow": 0}

_NO_CONTEXT = "no GL context could be made ({reason}); on Debian: apt-get install libegl1 libgl1-mesa-dri"


def load_mujoco() -> ModuleType:
    """Import mujoco, asking it for EGL where there is no screen and MUJOCO_GL does not say otherwise.

    MuJoCo chooses its GL library while it is imported, so this has to be the first import of it.
    """
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"rendering needs mujoco ({error}): pip install mujoco") from error
    except AttributeError as error:  # what PyOpenGL makes of a missing libEGL
        raise ConfigError(_NO_CONTEXT.format(reason=error)) from error
    except (ImportError, RuntimeError) as error:  # a value of MUJOCO_GL or PYOPENGL_PLATFORM that cannot be
        raise ConfigError(f"mujoco cannot be imported: {error}") from error


def apply_profile(model: mujoco.MjModel, profile: str) -> None:
    """Set the model's shadow map size. It counts only for contexts that are made afterwards."""
    if profile not in RENDER_PROFILES:
        raise ConfigError(f"unknown render profile {profile!r}{did_you_mean(profile, RENDER_PROFILES)}")
    shadow_size = RENDER_PROFILES[profile]
    if shadow_size is not None:
        model.vis.quality.shadowsize = shadow_size


def make_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """Make an off-screen renderer; its `render()` returns uint8 (height, width, 3), 0-255, top row first.

    Reuse one renderer: making one takes hundreds of milliseconds. The caller closes it.
    """
    # Mesa's software driver and triton (which torch brings) bring LLVM each. Loaded after a GL context exists,
    # triton ends in a segmentation fault at the first torch.optim constructor; loaded before, both work.
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
    mujoco = load_mujoco()
    # Without this MuJoCo refuses images larger than the buffer the model's XML asks for (640 x 480).
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    try:
        if os.environ.get("MUJOCO_GL") == "egl":
            _check_egl_display()
        return mujoco.Renderer(model, height=height, width=width)
    except (AttributeError, ImportError, OSError, RuntimeError, mujoco.FatalError) as error:
        raise ConfigError(_NO_CONTEXT.format(reason=error)) from error


def _check_egl_display() -> None:
    """Fail before `mujoco.Renderer` does, whose half-made objects print tracebacks when they are freed."""
    egl = importlib.import_module("mujoco.egl")
    if egl.create_initialized_egl_device_display() == egl.EGL.EGL_NO_DISPLAY:
        raise ImportError("EGL finds no device or no driver")


def renderer_name() -> str:
    """GL_RENDERER and GL_VERSION of the context in use, as 'llvmpipe (LLVM 15.0.6, 256 bits) 4.5 ...'.

    A renderer's context is the one in use from when it was made, or last rendered, until it is closed.
    """
    GL = importlib.import_module("OpenGL.GL")
    names = [GL.glGetString(GL.GL_RENDERER), GL.glGetString(GL.GL_VERSION)]
    if None in names:
        raise ConfigError("no GL context is in use: ask for its name between make_renderer and close")
    return " ".join(name.decode() for name in names)

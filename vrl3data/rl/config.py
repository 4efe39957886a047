"""What a run of VRL3 is made of, and presets whose every value says where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from vrl3data.errors import ConfigError, did_you_mean

EncoderGradient = Literal["critic", "actor", "none"]
"""Whose gradients train the encoder. critic: VRL3's. actor: those of behaviour cloning only. none: it is frozen."""


@dataclass(frozen=True)
class AgentConfig:
    """Networks, optimisers and losses that both stages share (VRL3 paper, sections 3 and appendix A)."""

    hidden_dim: int = 1024
    trunk_dim: int = 50
    lr: float = 1e-4
    encoder_lr_scale: float = 1.0
    gamma: float = 0.99
    n_step: int = 3
    target_tau: float = 0.01
    shift_pad: int = 4
    """Largest random shift of the images in pixels; 0 for no augmentation."""
    noise_clip: float = 0.3
    safe_q_threshold: float = 200.0
    safe_q_factor: float = 0.5
    """Exponent of what a target exceeds the threshold by; 1 switches safe Q off."""
    pretanh_weight: float = 0.001
    pretanh_threshold: float = 5.0
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: running statistics, no gradient for scale and shift. train: batch statistics and gradients."""


@dataclass(frozen=True)
class Stage2Config:
    """Offline: `bc_updates` of behaviour cloning, then `updates` of conservative actor-critic."""

    bc_updates: int = 5000
    bc_lr: float = 0.0
    """Of the warm-up; 0 takes the agent's. It falls to 0.3 of itself for the last 30 % of a warm-up given here."""
    bc_batch_norm: Literal["frozen", "train"] = "frozen"
    updates: int = 30_000
    std: float = 0.1
    cql_weight: float = 1.0
    cql_random: int = 10
    q_weight: float = 1.0
    bc_weight: float = 0.0
    encoder_gradient: EncoderGradient = "critic"
    """Of the updates after the warm-up; the warm-up trains the encoder."""
    anneal: float = 1.0
    """The learning rate falls linearly towards this share of itself over the offline updates. 1: constant."""
    fresh_optimizers: bool = False
    """Whether the optimisers forget the warm-up before the critic starts."""


@dataclass(frozen=True)
class Stage3Config:
    """Online. `frames` are raw environment frames, `action_repeat` of them for an agent step."""

    frames: int = 4_000_000
    update_every: int = 2
    """Agent steps between updates."""
    std: float = 0.01
    lr_scale: float = 1.0
    """Of the agent's learning rate."""
    q_weight: float = 1.0
    q_after: int = 0
    """Updates before the actor follows the critic."""
    bc_weight: float = 0.001
    bc_decay: float = 0.5
    bc_decay_steps: int = 40_000
    """BC's weight is bc_weight * bc_decay^floor(agent step / bc_decay_steps)."""
    demo_batch: int = 64
    """Transitions of demonstrations for BC; 0: BC on the whole batch."""
    cql_weight: float = 0.0
    encoder_gradient: EncoderGradient = "critic"
    capacity: int = 1_000_000
    """Agent steps of online experience that are kept."""
    protect_demonstrations: bool = True


@dataclass(frozen=True)
class VRL3Config:
    """A run. Nested fields are set as `agent.lr`, `stage2.updates`, ..."""

    preset: str = "paper"
    frames: int = 3
    """Frames in a stack."""
    action_repeat: int = 2
    batch_size: int = 256
    whole_windows: bool = True
    sample_by: Literal["episode", "step"] = "episode"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    agent: AgentConfig = field(default_factory=AgentConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    stage3: Stage3Config = field(default_factory=Stage3Config)


RUN = "run names of the paper's figures (plot_utils/vrl3_plot_example.py)"
CODE = "released configuration (src/cfgs_adroit/config.yaml)"
FIGURES = "figure scripts: 'No Grad Eval' is the default of the paper's runs"
OURS = "ours, for minutes on a CPU"

DEFAULTS: Mapping[str, str] = dict.fromkeys(
    ("agent.hidden_dim", "agent.trunk_dim", "agent.shift_pad", "agent.noise_clip", "agent.pretanh_weight",
     "agent.pretanh_threshold", "stage3.update_every", "stage3.capacity", "whole_windows", "sample_by"), CODE,
) | {"stage3.bc_decay_steps": "src/vrl3_agent.py: 40,000 agent steps"}  # fmt: skip
"""Where values come from that no preset changes."""

PRESETS: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "paper": {
        "frames": (3, RUN), "action_repeat": (2, RUN), "batch_size": (256, CODE), "agent.lr": (1e-4, RUN),
        "agent.encoder_lr_scale": (1.0, RUN), "agent.batch_norm": ("frozen", FIGURES),
        "agent.n_step": (3, CODE), "agent.gamma": (0.99, CODE), "agent.target_tau": (0.01, CODE),
        "agent.safe_q_threshold": (200.0, RUN), "agent.safe_q_factor": (0.5, RUN),
        "stage2.bc_updates": (5000, RUN), "stage2.updates": (30_000, RUN), "stage2.std": (0.1, RUN),
        "stage2.cql_weight": (1.0, RUN), "stage2.cql_random": (10, RUN), "stage3.std": (0.01, RUN),
        "stage3.bc_weight": (0.001, RUN), "stage3.bc_decay": (0.5, RUN), "stage3.demo_batch": (64, RUN),
        "stage3.frames": (4_000_000, RUN),
    },
    "released": {
        "frames": (1, CODE), "action_repeat": (2, CODE), "batch_size": (256, CODE), "agent.lr": (1e-4, CODE),
        "agent.encoder_lr_scale": (1.0, CODE + "; relocate 0.01"),
        "agent.batch_norm": ("train", "src/vrl3_agent.py: freeze_bn is never called"),
        "agent.n_step": (3, CODE), "agent.gamma": (0.99, CODE), "agent.target_tau": (0.01, CODE),
        "agent.safe_q_threshold": (200.0, CODE), "agent.safe_q_factor": (0.5, CODE),
        "stage2.bc_updates": (0, "src/train_adroit.py: there is no such phase"), "stage2.updates": (30_000, CODE),
        "stage2.std": (0.1, CODE), "stage2.cql_weight": (1.0, CODE), "stage2.cql_random": (10, CODE),
        "stage3.std": (0.01, CODE), "stage3.bc_weight": (0.0, CODE), "stage3.bc_decay": (0.95, CODE),
        "stage3.demo_batch": (0, "src/vrl3_agent.py: BC on the whole batch"),
        "stage3.protect_demonstrations": (False, "src/replay_buffer.py: first in, first out"),
        "stage3.frames": (4_100_000, CODE),
    },
    "bc": {
        "frames": (3, RUN), "action_repeat": (2, RUN), "stage2.bc_updates": (5000, RUN),
        "stage2.updates": (0, "behaviour cloning only"), "stage3.frames": (0, "behaviour cloning only"),
    },
    "short": {
        "frames": (3, RUN), "action_repeat": (1, OURS), "batch_size": (256, CODE), "whole_windows": (False, OURS),
        "sample_by": ("step", OURS), "agent.hidden_dim": (256, OURS), "agent.lr": (5e-4, OURS),
        "agent.encoder_lr_scale": (0.3, "ours: an encoder from stage 1 needs less"),
        "agent.gamma": (0.9, OURS), "agent.target_tau": (0.02, OURS),
        "stage2.bc_updates": (140, OURS), "stage2.bc_lr": (1e-3, OURS), "stage2.bc_batch_norm": ("train", OURS),
        "stage2.updates": (400, OURS), "stage2.q_weight": (0.0, "a fresh critic has no useful direction yet"),
        "stage2.bc_weight": (4.0, OURS), "stage2.encoder_gradient": ("none", "a fresh critic wrecks the encoder"),
        "stage2.fresh_optimizers": (True, OURS), "stage2.anneal": (0.1, OURS),
        "stage3.lr_scale": (0.2, OURS), "stage3.frames": (300, OURS), "stage3.std": (0.1, OURS),
        "stage3.q_weight": (0.03, OURS), "stage3.q_after": (50, OURS), "stage3.bc_weight": (4.0, OURS),
        "stage3.bc_decay": (1.0, OURS), "stage3.encoder_gradient": ("none", OURS), "stage3.update_every": (2, CODE),
        "stage3.capacity": (20_000, OURS),
    },
}  # fmt: skip


def preset(name: str, overrides: Mapping[str, Any] | None = None) -> VRL3Config:
    """The configuration of a preset with `overrides` by dotted name. ConfigError for unknown names."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{did_you_mean(name, PRESETS)}")
    config = VRL3Config(preset=name)
    values = {key: value for key, (value, _) in PRESETS[name].items()} | dict(overrides or {})
    for key, value in values.items():
        config = _set(config, key, value)
    return config


def explain(config: VRL3Config) -> list[tuple[str, str, str]]:
    """(name, value, source) of every setting: the preset's source, `default`, or that it was set by the caller."""
    found = []
    for key, default in _flat(VRL3Config()).items():
        value, source = PRESETS[config.preset].get(key, (default, DEFAULTS.get(key, "default")))
        actual = get(config, key)
        found.append((key, f"{actual}", source if actual == value else f"set by you; the preset has {value}"))
    return [row for row in found if row[0] != "preset"]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values of nested dataclasses by dotted name."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        found |= _flat(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return found


def get(config: Any, key: str) -> Any:
    """The value of a dotted name."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _set(config: Any, key: str, value: Any, within: str = "") -> Any:
    head, _, rest = key.partition(".")
    known = {item.name for item in fields(config)}
    if head not in known:
        raise ConfigError(f"no setting {key!r}{did_you_mean(head, known)}")
    old = getattr(config, head)
    if rest:
        if not hasattr(old, "__dataclass_fields__"):
            raise ConfigError(f"{head} is a value, it has no {rest!r}")
        return replace(config, **{head: _set(old, rest, value, f"{within}{head}.")})
    return replace(config, **{head: _converted(within + head, old, value)})


def _converted(key: str, old: Any, value: Any) -> Any:
    """`value` as the type of the default; text from a command line included."""
    if isinstance(value, str) and not isinstance(old, str):
        try:
            value = {"true": True, "false": False}[value.lower()] if isinstance(old, bool) else type(old)(value)
        except (KeyError, ValueError):
            raise ConfigError(f"{key}: expected {_KINDS[type(old)]}, found {value!r}") from None
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(old):
        raise ConfigError(f"{key}: expected {_KINDS[type(old)]}, found {value!r}")
    _check_range(key, value)
    return value


def _check_range(key: str, value: Any) -> None:
    name = key.rpartition(".")[2]
    if name in WORDS and value not in WORDS[name]:
        raise ConfigError(f"{key}: no {value!r}{did_you_mean(value, WORDS[name])}")
    if isinstance(value, (str, bool)):
        return
    least = 0 if key == "stage3.frames" else LEAST.get(name, 0)
    most = 1 if name in SHARES else math.inf
    if not math.isfinite(value) or not least <= value <= most:
        limit = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ConfigError(f"{key}: expected a number {limit}, found {value!r}")


WORDS = {
    "batch_norm": ("frozen", "train"), "bc_batch_norm": ("frozen", "train"), "sample_by": ("episode", "step"),
    "encoder_gradient": ("critic", "actor", "none"), "precision": ("auto", "bf16", "fp32"),
}  # fmt: skip
LEAST = {"frames": 1, "action_repeat": 1, "batch_size": 1, "hidden_dim": 1, "trunk_dim": 1, "n_step": 1,
         "update_every": 1, "bc_decay_steps": 1, "capacity": 1}  # fmt: skip
SHARES = ("gamma", "target_tau", "anneal", "bc_decay")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}

"""Success of a policy over episodes with fixed seeds, and a film of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vrl3data import storage
from vrl3data.errors import ConfigError
from vrl3data.report import Reporter, Silent
from vrl3data.rl.play import Choose, Played, Stage, open_stage
from vrl3data.rl.policy import Policy
from vrl3data.schema import Array

EVALUATION_SEED = 500_000
"""Episode k of an evaluation is reset with this + k; no other episode of ours has such a seed."""
Z95 = 1.959964
FILMED = 8
"""Episodes in a film."""
FILMS = (".gif", ".webp", ".png")


@dataclass(frozen=True)
class Evaluation:
    """Success is that of the last step. Returns are sums of the environment's rewards."""

    successes: tuple[bool, ...]
    successes_any: tuple[bool, ...]
    returns: tuple[float, ...]

    @property
    def success(self) -> float:
        return float(np.mean(self.successes))

    def facts(self) -> dict[str, Any]:
        """Success with its 95 % Wilson interval, as a program reads it."""
        low, high = wilson(sum(self.successes), len(self.successes))
        return {
            "episodes": len(self.successes), "success": round(self.success, 4), "success_low": round(low, 4),
            "success_high": round(high, 4), "success_any": round(float(np.mean(self.successes_any)), 4),
            "return": round(float(np.mean(self.returns)), 4),
        }  # fmt: skip


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0 and 1, unlike the normal one."""
    share, room = successes / trials, z * z / trials
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / trials + room / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def evaluate(
    policy: Policy | Path | str, episodes: int = 100, *, first_seed: int = EVALUATION_SEED, film: Path | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:  # fmt: skip
    """Success of a policy (or of the one in a directory) in its own environment, with mean actions."""
    check_film(film)
    if film is not None and isinstance(policy, Policy) and not policy.spec.cameras:
        raise ConfigError("this policy has no cameras: there are no images to make a film of")
    policy = policy if isinstance(policy, Policy) else Policy.from_pretrained(policy)
    if film is not None:
        storage.check_target(film)
    with open_stage(policy.spec.env_spec(), policy.spec.frames) as stage:
        return evaluate_policy(stage, policy.choose, episodes, reporter, first_seed, film)


def evaluate_policy(
    stage: Stage, choose: Choose, episodes: int, reporter: Reporter | None = None, first_seed: int = EVALUATION_SEED,
    film: Path | None = None,
) -> Evaluation:  # fmt: skip
    """Play `episodes` from reset seeds `first_seed` on. The first eight go into `film` (a GIF, WebP or APNG)."""
    if episodes < 1:
        raise ConfigError(f"expected at least one episode, found {episodes}")
    check_film(film)
    played: list[Played] = []
    last, ever, returns = [], [], []
    with (reporter or Silent()).progress("evaluating", episodes, "episodes") as advance:
        for number in range(episodes):
            episode = stage.play(choose, first_seed + number)
            last.append(episode.success_last)
            ever.append(episode.success_any)
            returns.append(float(episode.reward_T.sum()))
            if film is not None and len(played) < FILMED:
                played.append(episode)
            advance(1)
    if film is not None:
        save_film(film, played)
    return Evaluation(tuple(last), tuple(ever), tuple(returns))


def check_film(film: Path | None) -> None:
    if film is not None and film.suffix.lower() not in FILMS:
        raise ConfigError(f"expected a film named *.gif, *.webp or *.png, found {film.name}")


def save_film(path: Path, episodes: Sequence[Played], scale: int = 2, frame_ms: int = 80) -> None:
    """Episodes side by side, first camera; successes end in a green frame. ConfigError without images."""
    cameras = [next(iter(episode.images), None) for episode in episodes]
    if not episodes or cameras[0] is None:
        raise ConfigError("there are no images to make a film of")
    length = max(len(episode.action_TA) for episode in episodes) + 1
    frames = [Image.fromarray(_tile(episodes, str(cameras[0]), t, scale)) for t in range(length)]
    buffer = BytesIO()
    kind = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}[path.suffix.lower()]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=frame_ms, loop=0)
    with storage.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.replace_file(path, buffer.getvalue())


def _tile(episodes: Sequence[Played], camera: str, t: int, scale: int) -> Array:
    tiles = []
    for episode in episodes:
        images = episode.images[camera]
        image_HWC = images[min(t, len(images) - 1)].repeat(scale, 0).repeat(scale, 1).copy()
        ended = t >= len(images) - 1
        colour = ((40, 170, 70) if episode.success_last else (190, 50, 50)) if ended else (110, 110, 110)
        edge = np.ones(image_HWC.shape[:2], bool)
        edge[3:-3, 3:-3] = False
        image_HWC[edge] = colour
        tiles.append(image_HWC)
    return np.concatenate(tiles, 1)

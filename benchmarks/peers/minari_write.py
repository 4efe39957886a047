"""Minari sets written by minari itself (DataCollector, create_dataset_from_buffers); runs inside its environment.

MINARI_DATASETS_PATH=DEST python minari_write.py: writes the sets that are not there yet and prints each.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

PICTURE = spaces.Box(0, 255, (48, 64, 3), np.uint8)
STATE = spaces.Box(-np.inf, np.inf, (5,), np.float32)
NESTED = spaces.Dict(
    {
        "arm": spaces.Dict({"qpos": spaces.Box(-4, 4, (7,), np.float64), "contact": spaces.MultiBinary(3)}),
        "goal": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4, start=-1))),
        "mode": spaces.MultiDiscrete([3, 5]),
        "matrix": spaces.Box(-1, 1, (2, 3), np.float32),
        "tiny": spaces.Box(0, 255, (8, 8), np.uint8),
    }
)
BOTH = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)))
# name -> (observation space, action space, data format, images as JPEG)
SETS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any], str, bool]] = {
    "peers/box-v0": (STATE, spaces.Box(-1, 1, (2,), np.float32), "hdf5", True),
    "peers/box-arrow-v0": (STATE, spaces.Box(-1, 1, (2,), np.float32), "arrow", True),
    "peers/discrete-v0": (spaces.Discrete(16), spaces.Discrete(4), "hdf5", True),
    "peers/jpeg-v0": (spaces.Dict({"rgb": PICTURE, "state": STATE}), spaces.Discrete(4), "hdf5", True),
    "peers/jpeg-arrow-v0": (spaces.Dict({"rgb": PICTURE, "state": STATE}), spaces.Discrete(4), "arrow", True),
    "peers/raw-v0": (PICTURE, spaces.Discrete(4), "hdf5", False),
    "peers/raw-parquet-v0": (PICTURE, spaces.Discrete(4), "parquet", False),
    "peers/nested-v2": (NESTED, BOTH, "hdf5", True),
    "peers/nested-arrow-v2": (NESTED, BOTH, "arrow", True),
    "peers/text-v0": (
        spaces.Dict({"state": STATE, "instruction": spaces.Text(40)}),
        spaces.Box(-1, 1, (2,), np.float32),
        "hdf5",
        True,
    ),
}
LENGTHS = (7, 1, 23, 12)


def stack(space: spaces.Space[Any], values: list[Any]) -> Any:
    """Samples of `space` as the columns that an EpisodeBuffer wants: dicts and tuples outside, rows inside."""
    if isinstance(space, spaces.Dict):
        return {key: stack(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(part, [value[i] for value in values]) for i, part in enumerate(space.spaces))
    return list(values) if isinstance(space, spaces.Text) else np.stack([np.asarray(value) for value in values])


def buffers(name: str, observation: spaces.Space[Any], action: spaces.Space[Any], seed: int) -> list[EpisodeBuffer]:
    """Random episodes of LENGTHS steps; infos in the box sets, options in the second episode."""
    rng = np.random.default_rng(seed)
    observation.seed(seed)
    action.seed(seed + 1)
    episodes = []
    for number, length in enumerate(LENGTHS):
        infos = {"energy": rng.standard_normal(length + 1), "pose": {"xyz": rng.standard_normal((length + 1, 3))}}
        ends = np.arange(length) == length - 1
        episodes.append(
            EpisodeBuffer(
                id=number,
                seed=100 + number if number != 2 else None,
                options={"level": number} if number == 1 else None,
                observations=stack(observation, [observation.sample() for _ in range(length + 1)]),
                actions=stack(action, [action.sample() for _ in range(length)]),
                rewards=list(rng.standard_normal(length)),
                terminations=list(ends & (number % 2 == 0)),
                truncations=list(ends & (number % 2 == 1)),
                infos=infos if name.startswith("peers/box-v") else None,
            )
        )
    return episodes


def collect(name: str, environment: str, data_format: str, steps: int) -> None:
    """A set recorded by DataCollector from a gymnasium environment under a random policy, three episodes."""
    collector = minari.DataCollector(gymnasium.make(environment, max_episode_steps=steps), data_format=data_format)
    collector.action_space.seed(3)
    for episode in range(3):
        collector.reset(seed=episode)
        done = False
        while not done:
            *_, terminated, truncated, _ = collector.step(collector.action_space.sample())
            done = terminated or truncated
    collector.create_dataset(
        name,
        algorithm_name="random",
        author="A. Author",
        author_email="a@example.org",
        code_permalink="https://example.org/code",
        description=f"{environment} under a random policy",
        ref_min_score=0.0,
        ref_max_score=100.0,
    )
    collector.close()


def main() -> None:
    """Write every set that is not there yet."""
    warnings.simplefilter("ignore")
    present = minari.list_local_datasets()
    jobs: dict[str, Callable[[], Any]] = {
        "peers/cartpole-v0": lambda: collect("peers/cartpole-v0", "CartPole-v1", "hdf5", 40),
        "peers/pendulum-arrow-v1": lambda: collect("peers/pendulum-arrow-v1", "Pendulum-v1", "arrow", 25),
    }
    for seed, (name, (observation, action, data_format, jpeg)) in enumerate(SETS.items()):
        jobs[name] = lambda n=name, o=observation, a=action, f=data_format, j=jpeg, s=seed: (
            minari.create_dataset_from_buffers(
                n,
                buffers(n, o, a, s),
                observation_space=o,
                action_space=a,
                data_format=f,
                jpeg_encoding=j,
                description="random samples of the spaces",
            )
        )
    for name, job in jobs.items():
        if name not in present:
            job()
            print(json.dumps({"id": name}), flush=True)


if __name__ == "__main__":
    main()

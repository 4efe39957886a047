"""Read a Minari dataset with minari.load_dataset; runs inside minari's environment.

python minari_read.py PATH OUT: PATH is the dataset's folder, the one with data/ in it.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sight import Sight

warnings.simplefilter("ignore")


def flat(prefix: str, value: Any) -> dict[str, np.ndarray]:
    """A tree of dicts and tuples as one level; texts as NumPy strings."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, tuple):
        items = enumerate(value)
    else:
        return {} if value is None else {prefix: np.asarray(value)}
    return {name: rows for key, part in items for name, rows in flat(f"{prefix}/{key}", part).items()}


def open_set(path: Path) -> tuple[Any, str]:
    """The dataset, and how it was found: by its id when PATH ends with it, as minari wants, else by its folder."""
    stated = str(json.loads((path / "data" / "metadata.json").read_text()).get("dataset_id", ""))
    parts = Path(stated).parts
    by_id = bool(parts) and path.parts[-len(parts) :] == parts
    os.environ["MINARI_DATASETS_PATH"] = str(Path(*path.parts[: -len(parts)]) if by_id else path.parent)
    import minari

    if by_id:
        return minari.load_dataset(stated), f"load_dataset({stated!r})"
    return minari.MinariDataset(path / "data"), f"MinariDataset(data): the folder does not end with the id {stated!r}"


def main() -> None:
    """Write what minari sees of PATH to OUT."""
    dataset, how = open_set(Path(sys.argv[1]).resolve())
    import minari
    from minari.serialization import serialize_space

    sight = Sight(sys.argv[2], "minari", minari.__version__)
    metadata = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    for episode, about in zip(dataset.iterate_episodes(), metadata, strict=True):
        arrays = {"rewards": episode.rewards, "terminations": episode.terminations, "truncations": episode.truncations}
        for name in ("observations", "actions", "infos"):
            arrays |= flat(name, getattr(episode, name))
        sight.episode(f"episode_{episode.id}", arrays, about)
    spaces = {"observation": dataset.observation_space, "action": dataset.action_space}
    sight.close(
        opened=how, id=dataset.id, episodes=dataset.total_episodes, steps=dataset.total_steps,
        spaces={name: json.loads(serialize_space(space)) for name, space in spaces.items()},
        metadata=dataset.storage.metadata, env_spec=dataset.env_spec and dataset.env_spec.to_json(),
    )  # fmt: skip


if __name__ == "__main__":
    main()

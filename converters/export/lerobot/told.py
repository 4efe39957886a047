"""What only source_meta says of a dataset, and LeRobot has a place for: the robot's type, and tasks that change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vrl3data.dataset import Dataset

Changes = list[tuple[int, str]]
"""(row from which it holds, task)."""


@dataclass
class Told:
    """`changes`: position -> its tasks, of the episodes in which the task changes."""

    robot_type: str = ""
    changes: dict[int, Changes] = field(default_factory=dict)
    order: dict[int, list[str]] = field(default_factory=dict)
    """Position -> the tasks of an episode as its source lists them."""
    meta: int = 0
    """Episodes whose source said something that no feature holds."""

    def words(self, position: int, task: str, length: int) -> list[str]:
        """The task of each row."""
        changes = self.changes.get(position, [(0, task)])
        ends = [row for row, _ in changes[1:]] + [length]
        return [word for (row, word), end in zip(changes, ends, strict=True) for _ in range(row, end)]

    def tasks(self, position: int, task: str) -> list[str]:
        """All tasks of an episode, each once."""
        found = list(dict.fromkeys(word for _, word in self.changes.get(position, [(0, task)])))
        listed = self.order.get(position, found)
        return listed if sorted(listed) == sorted(found) else found


def listen(dataset: Dataset, order: Iterable[int]) -> Told:
    """One pass over the commit records."""
    told = Told()
    for position in order:
        item = dataset[position]
        said = item.source_meta
        told.meta += bool(said)
        about = said.get("dataset")
        robot = about.get("robot_type") if isinstance(about, dict) else None
        told.robot_type = told.robot_type or (robot if isinstance(robot, str) else "")
        changes = _changes(said.get("task_changes"), item.length)
        if item.meta["task"] in (word for _, word in changes):  # another task may have been given since
            told.changes[position] = changes
            listed = said.get("tasks")
            if isinstance(listed, list) and all(isinstance(word, str) for word in listed):
                told.order[position] = listed
    return told


def _changes(value: Any, length: int) -> Changes:
    """As the converter writes them; nothing if this is something else."""
    pairs: Sequence[Any] = value if isinstance(value, list) else ()
    if not all(isinstance(pair, list) and list(map(type, pair)) == [int, str] for pair in pairs):
        return []
    rows = [row for row, _ in pairs]
    rising = rows[:1] == [0] and all(a < b for a, b in zip(rows, [*rows[1:], length], strict=True))
    return [(row, word) for row, word in pairs] if rising else []

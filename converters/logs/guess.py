"""What the streams of a log probably mean, by the names and types of its topics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from converters.logs.look import SYSTEM
from converters.logs.streams import StreamSpec
from converters.mapping import Rule, feature_name

ACTIONS = ("action", "actions", "command", "commands", "cmd", "cmd_vel", "joint_command", "joint_commands", "target",
           "target_joints", "goal", "setpoint", "control")  # fmt: skip
REWARDS = ("reward", "rewards")
SUCCESSES = ("success", "is_success", "succeeded")
TASKS = ("task", "instruction", "language_instruction", "prompt")
GENERIC = ("image", "image_raw", "image_rect", "image_color", "image_rect_color", "compressed", "compresseddepth",
           "compressed_depth", "raw", "image_rect_raw", "depth_registered", "aligned_depth_to_color")  # fmt: skip
"""Last words of camera topics that say nothing of which camera it is."""
LONGEST = 66
"""Of a feature, so that `age.` fits before it."""


def last_word(topic: str) -> str:
    return topic.rstrip("/").rpartition("/")[2].lower()


def guess_rules(
    specs: Sequence[StreamSpec], frames: Mapping[str, str], finite: Mapping[str, tuple[bool, ...]]
) -> list[Rule]:
    """Rules for the streams; what the machinery says of itself has none."""
    specs = [spec for spec in specs if spec.topic not in SYSTEM and spec.role != "text"]
    groups: dict[str, list[StreamSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.topic, []).append(spec)
    taken: set[str] = set()
    rules: list[Rule] = []
    acting = [topic for topic in groups if last_word(topic) in ACTIONS]
    joints = [spec for spec in specs if spec.names_at and spec.path == "position" and spec.topic not in acting]
    for topic, group in groups.items():
        if topic in acting:
            rules += _actions(group, topic == acting[0], taken)
            continue
        for spec in group:
            rows = "step" if last_word(topic) in (*REWARDS, *SUCCESSES) else ""
            rule = _rule(_unique(_name(spec, joints), taken), spec, finite.get(spec.name, ()))
            rules.append(replace(rule, rows=rows))
    return [_described(rule, groups, frames) for rule in rules]


def _actions(group: Sequence[StreamSpec], first: bool, taken: set[str]) -> list[Rule]:
    """The command: a position if there is one, else all its vectors joined. Commands are in force at a step."""
    vectors = [spec for spec in group if spec.role in ("vector", "quaternion")] or list(group)
    vectors = [spec for spec in vectors if spec.role not in ("picture", "depth")]
    whole = [spec for spec in vectors if spec.path == "position"] or vectors
    rules = []
    if first and whole:
        names: tuple[str, ...] = ()
        if len(whole) > 1:
            names = tuple(f"{spec.path}.{label}".strip(".") for spec in whole
                          for label in spec.names or map(str, range(spec.shape[0])))  # fmt: skip
        rule = _rule("action", whole[0], ()) if len(whole) == 1 else Rule("action", tuple(s.name for s in whole))
        scalar = len(whole) == 1 and whole[0].shape == (1,)
        rules.append(replace(rule, rows="step", names=names, columns=(0,) if scalar else ()))
        taken.add("action")
    else:
        whole = []
    for spec in group:
        if spec not in whole:
            name = _unique(feature_name("action", *_words(spec.topic), *_inner(spec)), taken)
            rules.append(replace(_rule(name, spec, ()), rows="step"))
    return rules


def _name(spec: StreamSpec, joints: Sequence[StreamSpec]) -> str:
    words = _words(spec.topic)
    if spec.role in ("picture", "depth"):
        telling = [word for word in words if word.lower() not in GENERIC] or words
        group = "depth" if spec.role == "depth" else "image"
        return feature_name("obs", group, "_".join(telling).replace(".", "_") or "camera")
    if last_word(spec.topic) in REWARDS and not _inner(spec)[1:]:
        return "reward"
    if last_word(spec.topic) in SUCCESSES and not _inner(spec)[1:]:
        return "success"
    if joints and spec is joints[0]:
        return "obs.proprio"
    return feature_name("obs", *words, *_inner(spec))


def _rule(name: str, spec: StreamSpec, finite: Sequence[bool]) -> Rule:
    """Columns that never had a number in the first messages are left out."""
    order = {"xyzw": "xyzw", "wxyz": "wxyz"}.get(spec.order, "")
    if spec.role == "picture":
        return Rule(name, (spec.name,))
    if spec.role == "depth":
        return Rule(name, (spec.name,), scale_m=spec.scale_m if spec.dtype == "uint16" else 0.001)
    if any(finite) and not all(finite):
        columns = tuple(number for number, known in enumerate(finite) if known)
        names = tuple(spec.names[number] for number in columns) if spec.names else ()
        return Rule(name, (spec.name,), columns=columns, names=names, unit=spec.unit)
    return Rule(name, (spec.name,), unit=spec.unit, quaternion=order)


def _described(rule: Rule, groups: Mapping[str, Sequence[StreamSpec]], frames: Mapping[str, str]) -> Rule:
    topic = next(topic for topic, group in groups.items() if any(spec.name == rule.source[0] for spec in group))
    frame = frames.get(topic, "")
    return replace(rule, description=f"{topic}, frame {frame}" if frame and len(frame) < 60 else topic)


def _words(topic: str) -> list[str]:
    return [word for word in topic.split("/") if word]


def _inner(spec: StreamSpec) -> list[str]:
    """Words of the path, without what every message of that kind has."""
    return [word for word in spec.path.replace("/", "_").split(".") if word and word != "data"]


def _unique(name: str, taken: set[str]) -> str:
    name = name if len(name) <= LONGEST else name[:LONGEST].rstrip("._")
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name[: LONGEST - 4]}_{number}"
    taken.add(found)
    return found


def is_silent(spec: StreamSpec, finite: Mapping[str, tuple[bool, ...]]) -> bool:
    """Whether none of the first messages had a number."""
    return spec.role in ("vector", "event") and not any(finite.get(spec.name, (True,)))


def clock_names(keys: Collection[str]) -> dict[str, str]:
    """A legal name for the clock of each track."""
    taken: set[str] = set()
    return {key: _unique(feature_name(key.strip("/")).replace(".", "_")[:60], taken) for key in keys}

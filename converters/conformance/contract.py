"""Checks of the class and of its plan."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

from converters.base import Plan
from converters.conformance.subject import Subject, Unfit, spread

TAKEN = ("paths", "episodes", "limit", "dry_run", "on_error", "overwrite", "append", "verify_source", "config",
         "settings", "jobs", "executor", "ray_address", "as_json", "quiet", "write_mapping")  # fmt: skip
"""Options of `vrl3data convert` itself."""


def check_class(subject: Subject) -> None:
    cls, options = subject.cls, getattr(subject.cls, "Options", None)
    if not (cls.__doc__ or "").strip():
        raise Unfit("the class has no docstring; its first line is what people see")
    if not is_dataclass(options) or not isinstance(options, type):
        raise Unfit(f"Options: expected a frozen dataclass, found {options!r}")
    if not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise Unfit("Options is not frozen: @dataclass(frozen=True)")
    names = [field.name for field in fields(options)]
    for field in fields(options):
        if field.default is MISSING and field.default_factory is MISSING:
            raise Unfit(f"the option {field.name!r} has no default")
    if "shard_size" not in names:
        raise Unfit("Options has no shard_size: int = SHARD_SIZE, which goes into the provenance")
    taken = sorted(set(names) & set(TAKEN))
    if taken:
        raise Unfit(f"the option {taken[0]!r} has the name of an option of vrl3data convert")
    for name in ("recognises", "plan", "read", "close"):
        if not callable(getattr(cls, name, None)):
            raise Unfit(f"there is no method {name}")
    subject.make()


def check_recognises(subject: Subject) -> None:
    folder = subject.order.folder / "foreign"
    (folder / "text").mkdir(parents=True)
    (folder / "nothing").mkdir()
    (folder / "text" / "notes.txt").write_text("some text\n")
    (folder / "empty").touch()
    source = subject.order.sources[0]
    if subject.cls.recognises(source) is not True:
        raise Unfit(f"recognises({source.name!r}) is not True")
    for name in ("empty", "text", "nothing", "text/notes.txt", "not there"):
        if subject.cls.recognises(folder / name):
            raise Unfit(f"recognises a foreign source: {name!r}")


def check_plan(subject: Subject) -> None:
    first, second = subject.make().plan(), subject.make().plan()
    again = subject.make()
    again.plan()
    for other, what in [(second, "of a second converter"), (again.plan(), "of the same converter again")]:
        for name, value in _facts(first).items():
            if value != _facts(other)[name]:
                raise Unfit(f"{name} differs in the plan {what}: {value!r:.80} and {_facts(other)[name]!r:.80}")
    if first.problems:
        raise Unfit(f"a file of the source cannot be read: {first.problems[0][1]}")


def _facts(plan: Plan) -> dict[str, Any]:
    """What two plans have in common; payloads are judged by what is read of them."""
    spec = plan.spec
    return {
        "schema": spec.schema, "provenance": spec.provenance.to_json(), "name": spec.name, "license": spec.license,
        "description": spec.description, "count": plan.count, "batch": plan.batch, "notes": plan.notes,
        "problems": [(name, str(error)) for name, error in plan.problems],
    }  # fmt: skip


def check_units(subject: Subject) -> None:
    one, two = subject.make().plan(), subject.make().plan()
    units = [unit.name for unit in one.units]
    if not units:
        raise Unfit("the source has no units; give one with some")
    if len(units) != one.count:
        raise Unfit(f"the plan counts {one.count} units, there are {len(units)}")
    if units != [unit.name for unit in two.units]:
        raise Unfit("the names or the order of the units differ between two plans")
    seen: set[str] = set()
    for name in units:
        if not isinstance(name, str) or not name:
            raise Unfit(f"expected a text as name of a unit, found {name!r}")
        if name.encode("utf-8", "replace").decode() != name or not name.isprintable():
            raise Unfit(f"the name {name!r} cannot be stored or printed")
        if name.startswith("/") or ".." in name.split("/"):
            raise Unfit(f"the name {name!r} is no relative name")
        if name in seen:
            raise Unfit(f"two units have the name {name!r}")
        seen.add(name)
    if one.batch < 1:
        raise Unfit(f"batch: expected at least 1, found {one.batch}")


def check_pickle(subject: Subject) -> None:
    converter, plan, units = subject.planned()
    setup = subject.setup(converter, plan)
    subject.digest(setup, units[0])  # with all that is open then
    travelled = ForkingPickler.loads(ForkingPickler.dumps(converter))
    for unit in spread(units, 2):
        copy = ForkingPickler.loads(ForkingPickler.dumps(unit))
        if subject.digest(subject.setup(travelled, plan), copy) != subject.digests[unit.name]:
            raise Unfit(f"{unit.name}: a converter that travelled reads another sample")
    travelled.close()
    converter.close()

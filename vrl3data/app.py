"""What the commands do, for Python: conversion and recording together with card and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vrl3data.errors import ConfigError, DestinationError, SourceError, did_you_mean, locate
from vrl3data.report import Reporter, Silent

if TYPE_CHECKING:
    from converters.export.base import ExportReceipt
    from converters.forecast import Forecast
    from converters.run import Receipt
    from vrl3data.dataset import Dataset
    from vrl3data.manifest import Manifest


def convert(
    kind: str | None,
    sources: Sequence[Path | str] | Path | str,
    dest: Path | str,
    options: Mapping[str, Any] | None = None,
    *,
    jobs: int = 1,
    on_error: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    append: bool = False,
    verify_source: bool = False,
    episodes: str | None = None,
    limit: int | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    reporter: Reporter | None = None,
) -> Receipt:
    """Convert `sources` into the dataset `dest` and write its card. `options` are those of the kind.

    `kind` None recognises it by content. `append` adds to the finished dataset in `dest`; `verify_source` hashes the
    files again that what is already in `dest` was made from. `episodes` ("0:10,15,demo_3": half-open ranges, indices,
    names) and `limit` select units of the source. `executor` is local or ray; then `jobs` may be 0 for all cores of
    the cluster. With `jobs` above 1, call this under `if __name__ == "__main__"`.
    Raises ConfigError, SourceError, DestinationError; running it again goes on where it stopped.
    """
    from converters.run import RunOptions, run
    from converters.select import Selection

    chosen = Selection(episodes or "", limit)
    how = RunOptions(jobs, on_error, overwrite, append, verify_source, chosen, executor, ray_address or "")
    converter = _converter(kind, sources, dest, options or {})
    with _better_kind(kind, sources):
        _say_mapping(converter, reporter)
        receipt = run(converter, Path(dest), how, reporter)
    write_card(dest)
    return receipt


def forecast(
    kind: str | None,
    sources: Sequence[Path | str] | Path | str,
    dest: Path | str,
    options: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    append: bool = False,
    episodes: str | None = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> Forecast:
    """What `convert` would write, from the whole plan and up to 16 units that are encoded and thrown away.

    Nothing is written in or beside `dest`. Raises what `convert` would raise before its first sample.
    """
    from converters.forecast import forecast as look
    from converters.run import RunOptions
    from converters.select import Selection

    how = RunOptions(overwrite=overwrite, append=append, selection=Selection(episodes or "", limit))
    converter = _converter(kind, sources, dest, options or {})
    with _better_kind(kind, sources):
        _say_mapping(converter, reporter)
        return look(converter, Path(dest), how, reporter)


def write_mapping(
    kind: str, sources: Sequence[Path | str], path: Path | str, options: Mapping[str, Any] | None = None
) -> Path:
    """Write the mapping of fields that a conversion would use to `path`, to be edited. Nothing is converted.

    ConfigError if the kind has none; DestinationError if there is such a file.
    """
    from converters.base import Mapped
    from vrl3data import storage

    file = Path(path)
    converter = _converter(kind, sources, file, options or {})
    if not isinstance(converter, Mapped):
        raise ConfigError(f"the kind {kind!r} has no mapping of fields")
    text = converter.mapping().to_toml(converter.known())
    with locate(path=file):
        if file.exists():
            raise DestinationError("there is a file of that name already; choose another, or delete it")
    storage.check_target(file)
    with storage.writing(file):
        storage.replace_file(file, text.encode("utf-8"))
    return file


def _say_mapping(converter: Any, reporter: Reporter | None) -> None:
    """Whoever has no mapping file sees what was guessed, before it is done."""
    from converters.base import Mapped

    if reporter is not None and isinstance(converter, Mapped):
        reporter.note(converter.mapping().text())


def _converter(
    kind: str | None, sources: Sequence[Path | str] | Path | str, dest: Path | str, options: Mapping[str, Any]
) -> Any:
    """What reads `sources`; not yet a look at them, unless the kind is to be recognised."""
    from converters.base import find, recognise
    from converters.run import resolved
    from vrl3data import config

    paths = [Path(sources)] if isinstance(sources, (str, Path)) else [Path(source) for source in sources]
    if not paths:
        raise ConfigError("expected at least one source")
    for source in paths:
        if source.is_dir() and resolved(Path(dest)).is_relative_to(source.resolve()):
            raise ConfigError(f"the target {dest} would lie inside the source {source}; choose another directory")
    converter = find(kind or recognise(paths[0]))
    built: Any = config.build(converter.Options, options)
    return converter(paths, built)


@contextmanager
def _better_kind(kind: str | None, sources: Sequence[Path | str] | Path | str) -> Iterator[None]:
    """Where a source is refused that is of another kind than was said, say so."""
    from converters.base import recognise

    try:
        yield
    except SourceError as error:
        first = Path(sources if isinstance(sources, (str, Path)) else sources[0])
        with suppress(SourceError):
            found = recognise(first) if kind else kind
            if found != kind:
                error.message += f"; it looks like the kind {found!r}, not {kind!r}"
        raise


def export(
    kind: str,
    dataset: Dataset | Path | str,
    dest: Path | str,
    options: Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> ExportReceipt:
    """Write a dataset, or some of its splits, in the layout of another tool to `dest`, which must not exist yet.

    `dataset` may be a folder, a URL or an open dataset; `options` are those of the kind (`converters.export.EXPORTS`).
    The receipt says what the layout could not hold. Raises ConfigError, DestinationError, DamagedError.
    """
    from contextlib import ExitStack

    from converters.export.base import export as write
    from converters.export.base import find, selected
    from vrl3data import config
    from vrl3data.dataset import Dataset, open_dataset

    built: Any = config.build(find(kind).Options, options or {})
    with ExitStack() as stack:
        opened = dataset if isinstance(dataset, Dataset) else stack.enter_context(open_dataset(dataset))
        chosen = selected(opened, splits)
        if chosen is not opened:
            stack.enter_context(chosen)
        return write(kind, chosen, Path(dest), built, reporter)


def write_card(path: Path | str) -> Path:
    """(Re)write README.md, the card, of a dataset, an encoder or a policy."""
    directory = Path(path)
    names = {item.name for item in directory.iterdir()} if directory.is_dir() else set()
    if names & {"encoder.json", "policy.json"} and "dataset.json" not in names:
        from cards import bundle, hub

        return hub.write_card(directory, bundle.find_kind(names))
    from cards.dataset_card import write_card as write
    from vrl3data.dataset import locate_dataset, open_dataset

    with open_dataset(locate_dataset(path, to_write=True)) as dataset:
        return write(dataset)


@dataclass(frozen=True)
class LiveOptions:
    """How `record` acts and what it records. `noise` is the standard deviation added to scripted actions."""

    episodes: int = 20
    steps: int = 25
    seed: int = 0
    policy: Literal["scripted", "random"] = "scripted"
    noise: float = 0.1
    image_size: int = 84
    codec: str = "raw"
    split: str = "train"
    name: str = ""
    license: str = "unknown"


def record(
    env_name: str, dest: Path | str, options: LiveOptions | None = None, reporter: Reporter | None = None
) -> Manifest:
    """Record episodes of a live environment into `dest` and write its card.

    Episode i depends on the seed and i alone, so an interrupted recording goes on to the same bytes.
    """
    from converters.base import check_shared
    from vrl3data import manifest
    from vrl3data.manifest import SHARD_SIZE
    from vrl3data.record import AlreadyRecorded, Recorder, RecordOptions

    options, reporter = options or LiveOptions(), reporter or Silent()
    if options.episodes < 1 or options.steps < 1:
        raise ConfigError(f"expected at least one episode and one step, found {options.episodes} and {options.steps}")
    if options.noise < 0 or options.seed < 0 or not 16 <= options.image_size <= 1024:
        raise ConfigError(
            f"expected noise and seed of at least 0 and an image size of 16 to 1024, found {options.noise}, "
            f"{options.seed} and {options.image_size}"
        )
    check_shared(options.split, SHARD_SIZE)
    env, act = _environment(env_name, options)
    facts = asdict(options) | {"policy": options.policy if act else "random"}
    record_options = RecordOptions(
        name=options.name or f"{env_name.lower()}-{options.policy}",
        task=getattr(env.unwrapped, "task", env_name),
        origin="scripted" if options.policy == "scripted" else "policy",
        codec=options.codec,
        split=options.split,
        license=options.license,
        session=f"seed-{options.seed}",
        options={key: facts[key] for key in ("steps", "seed", "policy", "noise", "image_size")},
        renderer=getattr(env.unwrapped, "renderer", ""),
    )
    try:
        with Recorder(env, dest, record_options, reporter) as recorder:
            _play(recorder, act, options, reporter)
    except AlreadyRecorded:
        env.close()
        reporter.note(f"{dest} is already whole")
    write_card(dest)
    found = manifest.read(Path(dest))
    assert found is not None
    if found.samples != options.episodes:
        raise DestinationError(
            f"{dest} is finished with {found.samples} episodes, not {options.episodes}; choose another"
        )
    return found


def _play(recorder: Any, act: Any, options: LiveOptions, reporter: Reporter) -> None:
    import numpy as np

    with reporter.progress("recording", options.episodes, "episodes") as advance:
        advance(recorder.episodes)
        for episode in range(recorder.episodes, options.episodes):
            rng = np.random.default_rng([options.seed, episode])
            recorder.reset(seed=int(rng.integers(2**31)))
            for _ in range(options.steps):
                action = act.action(recorder.unwrapped, rng) if act else _random(recorder.action_space, rng)
                if any(recorder.step(action)[2:4]):
                    break
            advance(1)


def _random(space: Any, rng: Any) -> Any:
    space.seed(int(rng.integers(2**31)))
    return space.sample()


def _environment(name: str, options: LiveOptions) -> tuple[Any, Any]:
    """(environment, demonstrator or None). Our own by name, any other by its Gymnasium id."""
    import gymnasium

    from vrl3data.envs import DEMONSTRATORS, ENVS

    if options.policy == "scripted" and name not in DEMONSTRATORS:
        raise ConfigError(
            f"there is no scripted demonstrator for {name!r}{did_you_mean(name, DEMONSTRATORS)}; "
            "--policy random works for any environment"
        )
    act = _load(DEMONSTRATORS[name])(noise=options.noise) if options.policy == "scripted" else None
    if name in ENVS:
        from vrl3data.envs.repeat import unscaled

        return unscaled(_load(ENVS[name])(image_size=options.image_size, max_steps=options.steps)), act
    try:
        return gymnasium.make(name, max_episode_steps=options.steps), act
    except gymnasium.error.Error as error:
        raise ConfigError(f"unknown environment {name!r}{did_you_mean(name, ENVS)} ({error})") from error


def _load(place: str) -> Any:
    module, attribute = place.split(":")
    return getattr(import_module(module), attribute)

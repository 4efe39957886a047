"""push and pull: datasets, encoders and policies to and from a folder or the Hugging Face Hub, checked on arrival."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cards import bundle as bundles
from cards import transfer
from cards.bundle import Bundle, File
from cards.hub_store import HubStore, Repo, publish
from cards.model_card import CARD
from cards.transfer import FolderStore
from vrl3data.dataset import PACKAGED, locate_dataset, open_dataset
from vrl3data.errors import ConfigError, locate
from vrl3data.report import Reporter, Silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.IGNORECASE | re.DOTALL)
_REPO = re.compile(r"(datasets/)?([\w.-]+/[\w.-]+?)(?:@(.+))?", re.ASCII)


@dataclass(frozen=True)
class PushOptions:
    """`public`: everyone may see it. `overwrite`: another thing in a target folder may be replaced."""

    public: bool = False
    dry_run: bool = False
    overwrite: bool = False
    message: str = ""


@dataclass(frozen=True)
class PullOptions:
    dry_run: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Receipt:
    """What was, or with `dry_run` would be, brought where. `files` are name -> bytes, `sent` those not there before."""

    kind: str
    source: str
    target: str
    fingerprint: str
    files: Mapping[str, int]
    sent: tuple[str, ...] = ()
    dry_run: bool = False
    commit: str = ""
    private: bool | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


def parse_place(text: str) -> Path | Repo:
    """A folder (path or file://) or a repository: hf://datasets/USER/NAME, hf://USER/NAME, either with @REVISION."""
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError(f"expected file:///absolute/path, found {text!r}")
        return Path(unquote(parts.path))
    if scheme != "hf":
        hint = "; say hf://datasets/USER/NAME or hf://USER/NAME" if "huggingface.co" in rest else ""
        raise ConfigError(f"expected a folder, file://... or hf://..., found {text!r}{hint}")
    repo = _REPO.fullmatch(rest)
    if repo is None or (not repo[1] and repo[2].partition("/")[0] in ("datasets", "models", "spaces")):
        raise ConfigError(f"expected hf://datasets/USER/NAME or hf://USER/NAME, found {text!r}")
    return Repo(repo[2], "dataset" if repo[1] else "model", repo[3])


def push(
    source: Path | str, target: Path | str, options: PushOptions | None = None, *,
    reporter: Reporter | None = None, api: HfApi | None = None,
) -> Receipt:  # fmt: skip
    """Bring the dataset, encoder or policy in the folder `source` to `target`; see `parse_place`.

    It is checked whole first, and every file again where it arrived; a card is written if there is none.
    ConfigError, DestinationError, DamagedError. With `dry_run`, neither disk nor network is touched.
    """
    options, reporter = options or PushOptions(), reporter or Silent()
    directory, place = _folder(source), parse_place(str(target))
    bundle = bundles.read(directory)
    bundles.check_idle(directory)
    if isinstance(place, Repo) and place.revision:
        raise ConfigError(f"push goes to the main branch; leave out @{place.revision}")
    if isinstance(place, Repo) and (place.kind == "dataset") != (bundle.kind == "dataset"):
        right = f"hf://{'datasets/' if bundle.kind == 'dataset' else ''}{place.name}"
        raise ConfigError(f"expected {right} for this {bundle.kind}, found {place}")
    if isinstance(place, Path):
        transfer.check_apart(directory, place)
    if options.dry_run:
        return _planned(_with_card(directory, bundle), str(source), str(place), place, options)
    bundles.check(directory, bundle, reporter)
    write_card(directory, bundle.kind, overwrite=False)
    bundle = bundles.read(directory)
    _warn_of_old_card(directory, bundle, reporter)
    receipt = _receipt(bundle, str(source), str(place))
    if isinstance(place, Path):
        store = FolderStore(directory)
        got = transfer.receive(store, transfer.described(store), place, options.overwrite, reporter, trusted=True)
        return replace(receipt, sent=got.fetched)
    hashed = _hashed(directory, bundle, reporter)
    message = options.message or f"{bundle.kind} {bundle.fingerprint[:12]}, sent by vrl3data"
    reporter.note(f"sending what {place} does not have of {receipt.bytes:,} bytes")
    done = publish(api or _api(), directory, hashed, place, options.public, message)
    if options.public and done.private:
        reporter.warn(f"{place} was private before and stays so; change that on its page: {done.url}/settings")
    return replace(receipt, sent=done.sent, commit=done.commit, private=done.private)


def pull(
    source: Path | str, target: Path | str, options: PullOptions | None = None, *,
    reporter: Reporter | None = None, api: HfApi | None = None,
) -> Receipt:  # fmt: skip
    """Bring a dataset, encoder or policy from `source`, see `parse_place`, into the folder `target`, checked whole.

    Running it again goes on after an interruption. ConfigError, SourceError, DestinationError, DamagedError; after
    any of them the target is as it was. `dry_run` asks the source what it holds and writes nothing.
    """
    options, reporter = options or PullOptions(), reporter or Silent()
    place, folder = parse_place(str(source)), parse_place(str(target))
    if isinstance(folder, Repo):
        raise ConfigError(f"pull brings things into a folder, found {folder}; 'vrl3data push' sends them there")
    if isinstance(place, Repo):
        store: transfer.Store = HubStore(place, api or _api())
        commit = store.commit if isinstance(store, HubStore) else ""
    else:
        directory, commit = _folder(place), ""
        bundles.check_idle(directory)
        transfer.check_apart(directory, folder)
        store = FolderStore(directory)
    found = transfer.described(store)
    receipt = replace(_receipt(found.bundle, str(source), str(folder)), commit=commit)
    if options.dry_run:
        return replace(receipt, sent=tuple(receipt.files), dry_run=True)
    got = transfer.receive(store, found, folder, options.overwrite, reporter)
    return replace(receipt, sent=got.fetched)


def write_card(directory: Path, kind: str, overwrite: bool = True) -> Path:
    """README.md of a dataset, encoder or policy; without `overwrite` one that is there stays."""
    path = directory / CARD
    if path.exists() and not overwrite:
        return path
    if kind == "dataset":
        from cards.dataset_card import write_card as write_dataset_card

        with open_dataset(directory) as dataset:
            return write_dataset_card(dataset)
    if kind == "policy":
        from cards.policy_card import write_card as write_policy_card

        return write_policy_card(directory, overwrite)
    from cards.encoder_card import write_card as write_encoder_card

    return write_encoder_card(directory, overwrite)


def card_text(directory: Path, kind: str) -> str:
    """What `write_card` would write."""
    from cards import model_card

    if kind == "dataset":
        from cards.dataset_card import dataset_card

        with open_dataset(directory) as dataset:
            return dataset_card(dataset)
    sidecar = model_card.read_sidecar(directory, bundles.SIDECARS[kind])
    if kind == "policy":
        from cards.policy_card import policy_card

        return policy_card(sidecar)
    from cards.encoder_card import encoder_card

    return encoder_card(sidecar)


def _folder(place: Path | str) -> Path:
    if str(place).startswith(PACKAGED):
        return locate_dataset(place)
    found = parse_place(str(place))
    if isinstance(found, Repo):
        raise ConfigError(f"expected a folder, found {found}; 'vrl3data pull' fetches it")
    with locate(path=found):
        if not found.is_dir():
            raise ConfigError("expected a directory, found a file" if found.exists() else "there is no such directory")
    return found


def _api() -> HfApi:
    from huggingface_hub import HfApi

    from vrl3data import __version__

    return HfApi(library_name="vrl3data", library_version=__version__)


def _receipt(bundle: Bundle, source: str, target: str) -> Receipt:
    return Receipt(bundle.kind, source, target, bundle.fingerprint, {file.name: file.size for file in bundle.files})


def _planned(bundle: Bundle, source: str, target: str, place: Path | Repo, options: PushOptions) -> Receipt:
    private = not options.public if isinstance(place, Repo) else None
    receipt = _receipt(bundle, source, target)
    return replace(receipt, sent=tuple(receipt.files), dry_run=True, private=private)


def _with_card(directory: Path, bundle: Bundle) -> Bundle:
    """With the card that would be written, if there is none."""
    if any(file.name == CARD for file in bundle.files):
        return bundle
    card = File(CARD, len(card_text(directory, bundle.kind).encode("utf-8")))
    return replace(bundle, files=(*bundle.files, card))


def _hashed(directory: Path, bundle: Bundle, reporter: Reporter) -> Bundle:
    """With the sha256 of every file."""
    files = []
    with reporter.progress("hashing", len(bundle.files), "files") as advance:
        for file in bundle.files:
            known = file.digests if "sha256" in file.digests else bundles.digests(directory / file.name)
            files.append(replace(file, digests={**file.digests, **known}))
            advance(1)
    return replace(bundle, files=tuple(files))


def _warn_of_old_card(directory: Path, bundle: Bundle, reporter: Reporter) -> None:
    text = (directory / CARD).read_text(encoding="utf-8", errors="replace")
    if bundle.fingerprint not in text:
        reporter.warn(
            f"{CARD} does not name the fingerprint {bundle.fingerprint[:12]}...: it may be that of an earlier state; "
            f"'vrl3data card {directory}' writes it anew"
        )

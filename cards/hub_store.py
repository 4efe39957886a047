"""The Hugging Face Hub as a place to fetch from and to publish to, through huggingface_hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards import bundle as bundles
from cards.bundle import FIXED, Bundle, File
from vrl3data import shard
from vrl3data.errors import ConfigError, DamagedError, DestinationError, SourceError, Vrl3dataError, locate

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN_HINT = "log in with 'hf auth login', or set HF_TOKEN (https://huggingface.co/settings/tokens)"


@dataclass(frozen=True)
class Repo:
    """A repository of the hub. `kind` is `dataset` or `model`; `revision` None is its main branch."""

    name: str
    kind: str
    revision: str | None = None

    def __str__(self) -> str:
        place = f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.name}"
        return f"{place}@{self.revision}" if self.revision else place


@dataclass(frozen=True)
class Published:
    """What `publish` did: files sent, the commit that holds all, the page, whether only its owners see it."""

    sent: tuple[str, ...]
    commit: str
    url: str
    private: bool


class HubStore:
    """A repository at one commit, so that what is fetched fits together. Asks the hub on construction."""

    def __init__(self, repo: Repo, api: HfApi) -> None:
        self.repo, self.api, self.label = repo, api, str(repo)
        with hub_errors(repo):
            self.commit = str(api.repo_info(repo.name, repo_type=repo.kind, revision=repo.revision).sha)
            self._files = _tree(api, repo, self.commit)

    def sizes(self) -> Mapping[str, int]:
        return {name: info.size for name, info in self._files.items()}

    def digests(self, name: str) -> Mapping[str, str]:
        return _digests(self._files[name])

    def read(self, name: str) -> bytes:
        """Through a folder that does not stay: looking at a thing leaves nothing behind."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, *name.split("/"))
            self.fetch(name, path)
            return path.read_bytes()

    def fetch(self, name: str, path: Path) -> Mapping[str, str]:
        """What huggingface_hub had fetched of a file before an interruption is not fetched again."""
        root = path.parents[name.count("/")]
        with hub_errors(self.repo), _quiet_bars():
            self.api.hf_hub_download(
                self.repo.name, name, repo_type=self.repo.kind, revision=self.commit, local_dir=root
            )
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return {}


def publish(api: HfApi, directory: Path, bundle: Bundle, repo: Repo, public: bool, message: str) -> Published:
    """Send what differs in one commit, then compare every file with what the hub reports.

    `bundle` has the sha256 of every file. ConfigError if the repository holds another kind of thing, or can be
    seen by everyone although `public` is not set. DamagedError if a file changed meanwhile or arrived otherwise.
    """
    with hub_errors(repo, writing=True), _quiet_bars():
        before, private = _prepare(api, repo, public)
        there = _tree(api, repo, before)
        _check_kind(bundle, there)
        changed = [file for file in bundle.files if not _equal(directory, file, there.get(file.name))]
        # Shards of an earlier state would be read along by whoever takes all of data/.
        names = {file.name for file in bundle.files}
        stale = sorted(name for name in set(there) - names if name.startswith("data/"))
        commit = before
        if changed or stale:
            commit = _commit(api, directory, repo, _Change(changed, stale, message, before))
        _verify(directory, bundle, _tree(api, repo, commit), commit)
    url = f"{api.endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.name}"
    return Published(tuple(file.name for file in changed), commit, url, private)


@dataclass(frozen=True)
class _Change:
    """One commit: files to send and to delete, its message, and the commit that it follows."""

    changed: list[File]
    stale: list[str]
    message: str
    before: str


def _prepare(api: HfApi, repo: Repo, public: bool) -> tuple[str, bool]:
    """(commit before ours, whether it is private) of the repository, which is made if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo.name, repo_type=repo.kind)
    except RepositoryNotFoundError:
        api.create_repo(repo.name, repo_type=repo.kind, private=not public)
        info = api.repo_info(repo.name, repo_type=repo.kind)
    if not info.private and not public:
        raise ConfigError("everyone can see this repository; say --public if that is meant, or name another")
    return str(info.sha), bool(info.private)


def _check_kind(bundle: Bundle, there: Mapping[str, Any]) -> None:
    sidecars = set(there) & set(bundles.SIDECARS.values())
    if sidecars and (kind := bundles.find_kind(sidecars)) != bundle.kind:
        raise ConfigError(f"expected a repository for this {bundle.kind}, found one that holds another kind: {kind}")


def _commit(api: HfApi, directory: Path, repo: Repo, change: _Change) -> str:
    """The id of the new commit. The hub refuses it if somebody else was faster."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = []
    for file in change.changed:
        addition = CommitOperationAdd(file.name, str(directory / file.name))
        # Before anything is sent: the file may have changed since it was checked.
        if addition.upload_info.sha256.hex() != file.digests["sha256"]:
            raise DamagedError(f"{file.name} changed since it was checked; run the command again")
        operations.append(addition)
    operations += [CommitOperationDelete(name) for name in change.stale]
    made = api.create_commit(
        repo.name, operations, commit_message=change.message, repo_type=repo.kind, parent_commit=change.before
    )
    return str(made.oid)


def _verify(directory: Path, bundle: Bundle, there: Mapping[str, Any], commit: str) -> None:
    for file in bundle.files:
        if not _equal(directory, file, there.get(file.name)):
            state = "is not what was sent" if file.name in there else "is missing"
            raise DamagedError(f"{file.name} {state} on the hub; do not use its commit {commit}, run the command again")


def _equal(directory: Path, file: File, info: Any) -> bool:
    """Whether the hub holds exactly this file: by its sha256, or for small ones by the hash of its git blob."""
    if info is None:
        return False
    known = _digests(info)
    if "sha256" in known:
        return bool(info.size == file.size and known["sha256"] == file.digests["sha256"])
    return known == bundles.digests(directory / file.name, ("git-sha1",))


def _digests(info: Any) -> dict[str, str]:
    return {"sha256": str(info.lfs.sha256)} if info.lfs else {"git-sha1": str(info.blob_id)}


def _tree(api: HfApi, repo: Repo, commit: str) -> dict[str, Any]:
    """The files that may belong to a thing of ours, by name. No other name that the hub says is ever used."""
    found: dict[str, Any] = {}
    for info in api.list_repo_tree(repo.name, recursive=True, revision=commit, repo_type=repo.kind):
        folder, _, name = info.path.rpartition("/")
        match = shard.FILE_NAME.fullmatch(name) if folder == "data" else None
        if hasattr(info, "blob_id") and (match or info.path in FIXED):
            found[info.path] = info
    return found


# -- errors ----------------------------------------------------------------------------------------------------


@contextmanager
def hub_errors(repo: Repo, writing: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors, with what to do."""
    from huggingface_hub import errors

    failed: type[Vrl3dataError] = DestinationError if writing else SourceError
    # What the HTTP library below raises, whichever one this version of huggingface_hub uses.
    transport: Any = errors.HfHubHTTPError.__bases__[0]
    unreachable = "cannot reach the hub ({}); check the network and run the command again"
    with locate(path=repo):
        try:
            yield
        except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise _refusal(error, repo, failed) from error
        except errors.HFValidationError as error:
            raise ConfigError(f"this is no name of a repository: {error}") from error
        except (errors.LocalEntryNotFoundError, transport, ConnectionError, TimeoutError) as error:
            raise failed(unreachable.format(error)) from error
        except OSError as error:
            if error.errno is not None:  # our disk, not the network
                raise
            raise failed(unreachable.format(error)) from error
        except (RuntimeError, ValueError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise failed(f"huggingface_hub failed: {error}{cause}") from error


def _refusal(error: Any, repo: Repo, failed: type[Vrl3dataError]) -> Vrl3dataError:
    """What the hub, or huggingface_hub in its place, will not do."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConfigError("HF_HUB_OFFLINE is set; unset it to reach the hub")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return ConfigError(f"the hub wants a token: {TOKEN_HINT}")
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"access has to be asked for on the page of the repository; then {TOKEN_HINT}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return failed(f"there is no such repository, or it is private; if it is yours, {TOKEN_HINT}")
    if isinstance(error, errors.RevisionNotFoundError):
        return failed(f"the repository has no revision {repo.revision!r}")
    status, said = error.response.status_code, error.server_message or str(error).partition("\n")[0]
    if status == 401:
        return ConfigError(f"the hub does not accept the token: {TOKEN_HINT}")
    if status == 403:
        return ConfigError(f"the token may not do this ({said}): {TOKEN_HINT}")
    if status in (409, 412):
        return failed(f"the repository changed meanwhile ({said}); run the command again")
    return failed(f"the hub answers {status}: {said}")


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Our reporter shows progress; bars of huggingface_hub would write over it."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()

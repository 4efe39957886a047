"""push and pull with the hub: a small one on this machine, spoken to by the real huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_spec, shard_bytes, write_dataset
from fake_hub import TOKEN, FakeHub, Repository, serving
from things import FIRST, KINDS, Listener, fingerprint, flip, tree, write_thing

from cards import hub_store
from cards.hub import PushOptions, pull, push
from cards.hub_store import Repo
from vrl3data.errors import ConfigError, DamagedError, DestinationError, SourceError, Vrl3dataError
from vrl3data.validation import validate

NO_NETWORK = "http://127.0.0.1:9"
LEGACY = "ignore:Use 'content:DeprecationWarning"
"""huggingface_hub's own way of uploading without Xet, which the small hub does not speak."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub is the network: a small one on this machine, spoken to by the real huggingface_hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serving() as found:
        yield found


def api(hub: FakeHub, token: str | bool = TOKEN) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=token)


def place_of(kind: str) -> str:
    return "hf://datasets/me/thing" if kind == "dataset" else "hf://me/thing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings(LEGACY)
def test_a_round_trip_through_the_hub_keeps_every_byte(tmp_path: Path, hub: FakeHub, kind: str) -> None:
    source = write_thing(tmp_path / "source", kind)
    (source / "secret.txt").write_text("mine")
    receipt = push(source, place_of(kind), PushOptions(message="first"), api=api(hub))
    (repo,) = hub.repos.values()
    assert repo.private
    assert receipt.private
    assert receipt.commit == repo.head
    assert set(repo.commits[-1]) == {".gitattributes", *receipt.files}
    assert push(source, place_of(kind), api=api(hub)).sent == ()
    assert len(repo.commits) == 2
    hub.requests.clear()
    back = pull(place_of(kind), tmp_path / "back", api=api(hub))
    assert tree(tmp_path / "back") == {name: (source / name).read_bytes() for name in receipt.files}
    assert back.fingerprint == receipt.fingerprint == fingerprint(tmp_path / "back", kind)
    assert back.commit == receipt.commit
    assert pull(place_of(kind), tmp_path / "back", api=api(hub)).sent == ()
    if kind == "dataset":
        assert validate(tmp_path / "back").ok


@pytest.mark.filterwarnings(LEGACY)
def test_an_update_sends_what_is_new_and_revisions_stay(tmp_path: Path, hub: FakeHub) -> None:
    source = write_dataset(tmp_path / "source", 5, make_spec(shard_size=30_000))
    first = push(source, "hf://datasets/me/d", api=api(hub))
    hub.repos["dataset", "me/d"].commits[-1]["data/notes.txt"] = b"of somebody else"
    smaller = write_dataset(tmp_path / "smaller", 2, make_spec(shard_size=30_000))
    second = push(smaller, "hf://datasets/me/d", api=api(hub))
    assert FIRST not in second.sent
    stale = set(first.files) - set(second.files)
    assert stale
    assert not stale & set(hub.repos["dataset", "me/d"].commits[-1])
    assert "data/notes.txt" in hub.repos["dataset", "me/d"].commits[-1]
    old = pull(f"hf://datasets/me/d@{first.commit}", tmp_path / "old", api=api(hub))
    assert (old.fingerprint, old.commit) == (first.fingerprint, first.commit)
    assert pull("hf://datasets/me/d", tmp_path / "new", api=api(hub)).fingerprint == second.fingerprint
    with pytest.raises(SourceError, match="no revision 'nope'"):
        pull("hf://datasets/me/d@nope", tmp_path / "x", api=api(hub))


@pytest.mark.filterwarnings(LEGACY)
def test_public_is_said_or_refused(tmp_path: Path, hub: FakeHub) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    assert push(source, "hf://me/open", PushOptions(public=True), api=api(hub)).private is False
    assert not hub.repos["model", "me/open"].private
    with pytest.raises(ConfigError, match="everyone can see this repository; say --public"):
        push(source, "hf://me/open", api=api(hub))
    push(source, "hf://me/shut", api=api(hub))
    heard = Listener()
    assert push(source, "hf://me/shut", PushOptions(public=True), api=api(hub), reporter=heard).private
    assert "was private before and stays so" in heard.warnings[-1]
    policy = write_thing(tmp_path / "policy", "policy")
    with pytest.raises(
        ConfigError, match="expected a repository for this policy, found one that holds another kind: encoder"
    ):
        push(policy, "hf://me/shut", api=api(hub))


@pytest.mark.filterwarnings(LEGACY)
def test_what_the_hub_changes_is_noticed_both_ways(tmp_path: Path, hub: FakeHub) -> None:
    source = write_thing(tmp_path / "source", "dataset")
    hub.lose = FIRST
    with pytest.raises(DamagedError, match=r"train-000000\.tar is not what was sent on the hub"):
        push(source, "hf://datasets/me/d", api=api(hub))
    with pytest.raises(DamagedError, match="does not have the promised sha256"):
        pull("hf://datasets/me/d", tmp_path / "out", api=api(hub))
    assert not (tmp_path / "out").exists()
    hub.lose = ""
    push(source, "hf://datasets/me/d", api=api(hub))
    assert pull("hf://datasets/me/d", tmp_path / "out", api=api(hub)).sent


@pytest.mark.filterwarnings(LEGACY)
def test_a_file_that_changes_while_it_is_sent_is_noticed(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    prepare = hub_store._prepare

    def late(*arguments: Any) -> Any:
        flip(source / "encoder.safetensors", -1)
        return prepare(*arguments)

    monkeypatch.setattr(hub_store, "_prepare", late)
    with pytest.raises(DamagedError, match="changed since it was checked"):
        push(source, "hf://me/x", api=api(hub))
    assert len(hub.repos["model", "me/x"].commits) == 1


@pytest.mark.filterwarnings(LEGACY)
def test_names_from_the_hub_lead_nowhere_else(tmp_path: Path, hub: FakeHub) -> None:
    """A hostile repository: odd names, and a manifest that names them."""
    source = write_thing(tmp_path / "source", "dataset")
    push(source, "hf://datasets/me/d", api=api(hub))
    files = hub.repos["dataset", "me/d"].commits[-1]
    files |= {"../../evil": b"x", "data/../evil.tar": b"x", "run.py": b"x", "data/train-000000.tar.part": b"x"}
    pull("hf://datasets/me/d", tmp_path / "in" / "out", api=api(hub))
    assert tree(tmp_path / "in" / "out") == tree(source)
    assert not list(tmp_path.rglob("*evil*"))
    files["dataset.json"] = files["dataset.json"].replace(b"train-000000.tar", b"../../../evil.tar")
    with pytest.raises(DamagedError, match="shard '../../../evil.tar'"):
        pull("hf://datasets/me/d", tmp_path / "in" / "other", api=api(hub))
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.filterwarnings(LEGACY)
def test_an_interrupted_download_goes_on(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_thing(tmp_path / "source", "dataset")
    push(source, "hf://datasets/me/d", api=api(hub))
    last = max(shard_bytes(source))
    fetch = hub_store.HubStore.fetch

    def failing(self: Any, name: str, path: Path) -> Any:
        if name.endswith(last):
            raise KeyboardInterrupt
        return fetch(self, name, path)

    with monkeypatch.context() as patched:
        patched.setattr(hub_store.HubStore, "fetch", failing)
        with pytest.raises(KeyboardInterrupt):
            pull("hf://datasets/me/d", tmp_path / "out", api=api(hub))
    assert not (tmp_path / "out").exists()
    hub.requests.clear()
    pull("hf://datasets/me/d", tmp_path / "out", api=api(hub))
    assert sorted(hub.fetched()) == [f"data/{last}", "dataset.json"]
    assert not list(tmp_path.glob(".*"))


def test_what_the_hub_refuses_is_said_with_the_fix(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    source = write_thing(tmp_path / "source", "encoder")

    def refused(act: Any, kind: type[Vrl3dataError], message: str, token: str | bool = TOKEN, to: str = "me/x") -> None:
        arguments = (source, f"hf://{to}") if act is push else (f"hf://{to}", tmp_path / "out")
        with pytest.raises(kind, match=message):
            act(*arguments, api=api(hub, token))

    refused(push, ConfigError, "does not accept the token: log in with 'hf auth login', or set HF_TOKEN", "hf_wrong")
    refused(push, ConfigError, "the token may not do this", to="others/x")
    refused(pull, SourceError, "no such repository, or it is private; if it is yours, log in with 'hf auth login'")
    hub.repos["model", "me/x"] = hub_repository(gated=True)
    refused(pull, ConfigError, "access has to be asked for on the page of the repository")
    hub.repos["model", "me/x"] = hub_repository()
    refused(pull, ConfigError, "expected one of dataset.json, policy.json, encoder.json, it has none")
    hub.status = 503
    refused(pull, SourceError, "the hub answers 503")
    hub.status = 412
    refused(push, DestinationError, "changed meanwhile .*; run the command again")
    hub.endpoint = NO_NETWORK
    refused(pull, SourceError, "cannot reach the hub .*; check the network")
    refused(push, DestinationError, "cannot reach the hub .*; check the network")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(pull, ConfigError, "HF_HUB_OFFLINE is set|cannot reach the hub")
    assert not (tmp_path / "out").exists()


def hub_repository(gated: bool = False) -> Any:
    return Repository(private=False, gated=gated)


def test_errors_of_huggingface_hub_become_ours() -> None:
    from huggingface_hub import errors

    repo = Repo("me/x", "model", "v1")
    cases: list[tuple[Exception, type[Vrl3dataError], str]] = [
        (errors.LocalTokenNotFoundError("no"), ConfigError, "the hub wants a token"),
        (errors.HFValidationError("bad"), ConfigError, "this is no name of a repository: bad"),
        (errors.LocalEntryNotFoundError("offline"), SourceError, "cannot reach the hub"),
        (TimeoutError("slow"), SourceError, "cannot reach the hub"),
        (OSError("without a number"), SourceError, "cannot reach the hub"),
        (ValueError("Invalid metadata in README.md."), SourceError, "huggingface_hub failed: Invalid metadata"),
    ]
    for raised, kind, message in cases:
        with pytest.raises(kind, match=message), hub_store.hub_errors(repo):
            raise raised
    with pytest.raises(OSError, match="No space left"), hub_store.hub_errors(repo):
        raise OSError(28, "No space left on device")

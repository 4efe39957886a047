"""push and pull: what arrives is what was sent, and nothing else ever does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import filelock
import pytest
from conftest import make_episode, make_spec, shard_bytes
from things import ARCH, FIRST, KINDS, Listener, fingerprint, flip, tree, write_model, write_thing

from cards import bundle as bundles
from cards import transfer
from cards.bundle import digests
from cards.hub import PullOptions, PushOptions, Receipt, parse_place, pull, push
from cards.hub_store import Repo
from cards.transfer import FolderStore
from vrl3data.errors import ConfigError, DamagedError, DestinationError, SourceError
from vrl3data.validation import validate
from vrl3data.writer import LOCK, Writer

# -- a folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_through_a_folder_keeps_every_byte(tmp_path: Path, kind: str) -> None:
    source = write_thing(tmp_path / "source", kind)
    for litter in ("checkpoint.pt", ".hidden", "notes.txt"):
        (source / litter).write_text("mine")
    receipt = push(source, f"file://{tmp_path}/share/thing")
    sent = tree(tmp_path / "share" / "thing")
    assert set(sent) == set(receipt.files) == set(receipt.sent)
    assert "README.md" in sent
    assert not {"checkpoint.pt", ".hidden", "notes.txt"} & set(sent)
    back = pull(tmp_path / "share" / "thing", tmp_path / "back")
    assert tree(tmp_path / "back") == sent == {name: (source / name).read_bytes() for name in sent}
    assert receipt.kind == back.kind == kind
    assert receipt.fingerprint == back.fingerprint == fingerprint(tmp_path / "back", kind)
    assert receipt.bytes == sum(map(len, sent.values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "share", "source"]
    if kind == "dataset":
        assert len(shard_bytes(tmp_path / "back")) > 1
        assert validate(tmp_path / "back").ok


def test_the_encoder_that_arrives_gives_the_same_features(tmp_path: Path) -> None:
    import torch

    from vrl3data.encoders.encoder import Encoder, EncoderSpec

    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(ARCH, provenance={"objective": "none"})).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    push(tmp_path / "encoder", tmp_path / "share")
    pull(tmp_path / "share", tmp_path / "back")
    images_NCHW = torch.randint(0, 256, (2, 3, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(Encoder.from_pretrained(tmp_path / "back")(images_NCHW), encoder(images_NCHW))


def test_a_policy_takes_its_encoder_along(tmp_path: Path) -> None:
    policy = write_model(tmp_path / "policy", "policy")
    write_model(policy / "encoder", seed=1)
    assert "encoder/encoder.safetensors" in push(policy, tmp_path / "out").sent
    assert tree(tmp_path / "out") == tree(policy)
    flip(policy / "encoder" / "encoder.safetensors", -1)
    with pytest.raises(DamagedError, match=r"encoder\.safetensors does not have the promised sha256"):
        push(policy, tmp_path / "other")


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_touches_nothing(tmp_path: Path, kind: str) -> None:
    source = write_thing(tmp_path / "source", kind)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    receipts = [push(source, tmp_path / "out", PushOptions(dry_run=True)),
                push(source, f"hf://{'datasets/' * (kind == 'dataset')}me/x", PushOptions(dry_run=True)),
                pull(source, tmp_path / "out", PullOptions(dry_run=True))]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert receipts[1].private is True
    push(source, tmp_path / "out")
    sizes = {name: len(data) for name, data in tree(tmp_path / "out").items()}
    assert receipts[0].files == receipts[1].files == sizes
    assert receipts[2].files == {name: size for name, size in sizes.items() if name != "README.md"}


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    source = write_thing(tmp_path / "source", "dataset")
    (source / "README.md").write_text("# by hand\n")
    heard = Listener()
    push(source, tmp_path / "out", reporter=heard)
    assert (tmp_path / "out" / "README.md").read_text() == "# by hand\n"
    assert "README.md does not name the fingerprint" in heard.warnings[0]


# -- what is refused -------------------------------------------------------------------------------------------


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_shard(source: Path, name: str) -> None:
    found = json.loads((source / "dataset.json").read_text())
    found["splits"]["train"]["shards"][0]["name"] = name
    (source / "dataset.json").write_text(json.dumps(found))


TAMPERED: list[tuple[str, Any, str]] = [
    (
        "dataset",
        lambda s: flip(s / FIRST),
        r"train-000000\.tar does not have the promised sha256|structure: expected a tar header",
    ),
    ("dataset", lambda s: flip(s / "index.parquet"), r"index\.parquet does not have the promised xxh3_128|index"),
    ("dataset", lambda s: (s / FIRST).unlink(), r"train-000000\.tar is missing"),
    ("dataset", lambda s: (s / "index.parquet").unlink(), r"index\.parquet is missing; 'vrl3data index rebuild'"),
    ("dataset", lambda s: (s / FIRST).write_bytes(b"short"), r"has 5 bytes, dataset\.json promises"),
    ("dataset", lambda s: rename_shard(s, "../../x.tar"), r"shard '\.\./\.\./x\.tar'"),
    ("dataset", lambda s: rename_shard(s, "/etc/passwd"), "shard '/etc/passwd'"),
    ("dataset", lambda s: rename_shard(s, "val-000000.tar"), "which is no finished shard of split train"),
    ("dataset", lambda s: rename_shard(s, "train-000000.tar.part"), "which is no finished shard of split train"),
    ("dataset", lambda s: rename_shard(s, "train-000001.tar"), "names a shard twice"),
    ("dataset", lambda s: edit(s / "dataset.json", fingerprint="0" * 64), "fingerprint: the manifest does not say"),
    ("dataset", lambda s: edit(s / "dataset.json", fingerprint=7), "expected 64 hexadecimal digits, found 7"),
    ("dataset", lambda s: edit(s / "dataset.json", license="mit", subsets={"a": 1}), "manifest: subsets"),
    ("dataset", lambda s: (s / "dataset.json").write_text("[" * 100_000), "this is not a manifest of a dataset"),
    ("encoder", lambda s: flip(s / "encoder.safetensors", -1), r"encoder\.safetensors does not have the promised sha"),
    ("encoder", lambda s: (s / "encoder.safetensors").unlink(), r"encoder\.safetensors is missing"),
    ("encoder", lambda s: edit(s / "encoder.json", sha256="../x"), "expected 64 hexadecimal digits"),
    ("encoder", lambda s: (s / "encoder.json").write_text("[1]"), "expected a JSON object, found list"),
    ("policy", lambda s: (s / "policy.json").write_text("{"), r"policy\.json is not JSON"),
    ("policy", lambda s: flip(s / "policy.safetensors", -1), r"policy\.safetensors does not have the promised sha256"),
]


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("number", range(len(TAMPERED)))
def test_what_is_not_whole_does_not_arrive(tmp_path: Path, number: int, way: str) -> None:
    kind, tamper, message = TAMPERED[number]
    source = write_thing(tmp_path / "source", kind)
    tamper(source)
    with pytest.raises(DamagedError, match=message):
        (push if way == "push" else pull)(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    outside = [path.name for path in (*tmp_path.iterdir(), *tmp_path.parent.glob("*.tar"))]
    assert set(outside) <= {"source", ".out.incoming"}


def test_weights_that_are_no_safetensors_do_not_arrive(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "encoder.safetensors").write_bytes(b"\x80\x04 a pickle")
    edit(source / "encoder.json", sha256=digests(source / "encoder.safetensors")["sha256"])
    with pytest.raises(DamagedError, match="is not a safetensors file"):
        pull(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_nobody_stays_behind(tmp_path: Path) -> None:
    """`push` refuses a folder with a shard that the manifest does not name; `pull` leaves it where it is."""
    source = write_thing(tmp_path / "source", "dataset")
    shutil.copy(source / FIRST, source / "data" / "train-000099.tar")
    with pytest.raises(DamagedError, match="train-000099|not in the manifest|belongs"):
        push(source, tmp_path / "out")
    pull(source, tmp_path / "out")
    assert "train-000099.tar" not in shard_bytes(tmp_path / "out")


def test_a_dataset_that_is_being_written_is_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "new", make_spec())
    writer.write(make_episode(0))
    with pytest.raises(ConfigError, match="still being written: it has no dataset.json"):
        push(tmp_path / "new", tmp_path / "out")
    writer.close()
    source = write_thing(tmp_path / "source", "dataset")
    (source / "data" / "train-000009.tar.part").write_bytes(b"")
    with pytest.raises(ConfigError, match="it has unfinished shards"):
        pull(source, tmp_path / "out")
    (source / "data" / "train-000009.tar.part").unlink()
    with (
        filelock.FileLock(source / LOCK, blocking=False),
        pytest.raises(ConfigError, match="another process is writing this dataset"),
    ):
        push(source, tmp_path / "out", PushOptions(dry_run=True))


def test_a_target_that_holds_something_else_is_safe(tmp_path: Path) -> None:
    source, other = write_thing(tmp_path / "source", "dataset"), write_thing(tmp_path / "other", "dataset", seed=7)
    push(other, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DestinationError, match="holds another dataset, of fingerprint .*--overwrite"):
        pull(source, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    (tmp_path / "out" / "thesis.tex").write_text("work")
    with pytest.raises(DestinationError, match=r"'thesis\.tex', which would be lost"):
        pull(source, tmp_path / "out", PullOptions(overwrite=True))
    (tmp_path / "out" / "thesis.tex").unlink()
    pull(source, tmp_path / "out", PullOptions(overwrite=True))
    assert fingerprint(tmp_path / "out", "dataset") == fingerprint(source, "dataset")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("work")
    with pytest.raises(DestinationError, match="not empty and not a thing of vrl3data"):
        pull(source, tmp_path / "mine", PullOptions(overwrite=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="the target is a file"):
        pull(source, tmp_path / "file")
    for target in (source, source / "inner", tmp_path):
        with pytest.raises(DestinationError, match="overlap"):
            pull(source, target)


def test_the_same_thing_is_left_alone_or_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_thing(tmp_path / "source", "dataset")
    push(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert pull(source, tmp_path / "out").sent == ()
    flip(tmp_path / "out" / FIRST)
    with pytest.raises(DestinationError, match=r"'notes\.txt', which would be lost"):
        pull(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").unlink()
    heard = Listener()
    sent = pull(source, tmp_path / "out", reporter=heard).sent
    assert "is damaged and is mended" in heard.warnings[0]
    assert [name for name in sent if name.endswith(".tar")] == [FIRST]
    assert shard_bytes(tmp_path / "out") == shard_bytes(source)
    monkeypatch.chdir(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "data")
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    with pytest.raises(DestinationError, match="the target is the current directory"):
        pull(source, ".")


def test_one_process_at_a_time_brings_something(tmp_path: Path) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    lock = filelock.FileLock(tmp_path / ".out.lock", blocking=False)
    with lock, pytest.raises(DestinationError, match="another process is bringing something here"):
        pull(source, tmp_path / "out")
    pull(source, tmp_path / "out")


def test_a_file_in_the_way_of_the_hidden_folder_is_named(tmp_path: Path) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    (tmp_path / ".out.incoming").symlink_to(tmp_path)
    with pytest.raises(DestinationError, match="a file is in the way"):
        pull(source, tmp_path / "out")


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_interrupted_pull_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    """Interrupted at any shard, it leaves nothing at the target and fetches the others only once."""
    source = write_thing(tmp_path / "source", "dataset")
    shards = sorted(shard_bytes(source))
    fetch, fetched = FolderStore.fetch, []

    def failing(self: FolderStore, name: str, path: Path) -> Any:
        if name == f"data/{shards[broken]}" and name not in fetched:
            fetched.append(name)
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt
        fetched.append(name)
        return fetch(self, name, path)

    monkeypatch.setattr(FolderStore, "fetch", failing)
    with pytest.raises(KeyboardInterrupt):
        pull(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pull(source, tmp_path / "out")
    counts = [fetched.count(f"data/{name}") for name in shards]
    assert counts == [2 if number == broken else 1 for number in range(len(shards))]
    assert tree(tmp_path / "out") == tree(source)
    assert not list(tmp_path.glob(".*"))


def test_a_copy_that_went_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk hands back other bytes than were written: files without a promised hash are read back too."""
    source = write_thing(tmp_path / "source", "encoder")
    (source / "README.md").write_text("# mine " + "0" * 2000)
    fetch = FolderStore.fetch

    def losing(self: FolderStore, name: str, path: Path) -> Any:
        found = fetch(self, name, path)
        if name == "README.md":
            flip(path)
        return found

    monkeypatch.setattr(FolderStore, "fetch", losing)
    with pytest.raises(DamagedError, match=r"README\.md does not have the promised sha256"):
        push(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_of_either_disk_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read: No such file"):
        FolderStore(tmp_path).fetch("missing", tmp_path / "out")
    source = write_thing(tmp_path / "source", "encoder")
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="cannot write"):
        pull(source, tmp_path / "file" / "out")


def test_large_and_ambiguous_sidecars_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_thing(tmp_path / "source", "dataset")
    write_model(source)
    with pytest.raises(ConfigError, match=r"it has dataset\.json and encoder\.json"):
        push(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="expected one of .*, it has none"):
        push(tmp_path, tmp_path / "out")
    monkeypatch.setattr(bundles, "MAX_SIDECAR", 10)
    encoder = write_model(tmp_path / "encoder")
    for act in (push, pull):
        with pytest.raises(DamagedError, match=r"(larger than|at most) 10"):
            act(encoder, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("out/door", Path("out/door")),
        ("file:///tmp/a%20b", Path("/tmp/a b")),
        ("hf://me/x", Repo("me/x", "model")),
        ("hf://datasets/me/x@v1.0", Repo("me/x", "dataset", "v1.0")),
        ("HF://me/x@refs/pr/1", Repo("me/x", "model", "refs/pr/1")),
    ],
)
def test_places(text: str, found: Path | Repo) -> None:
    assert parse_place(text) == found
    assert isinstance(found, Path) or str(found).lower() == text.lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://x", "expected hf://datasets/USER/NAME or hf://USER/NAME"),
        ("hf://datasets/x", "expected hf://datasets/USER/NAME"),
        ("hf://me/x/../../etc", "expected hf://datasets/USER/NAME"),
        ("s3://bucket/x", "expected a folder, file://... or hf://..."),
        ("https://huggingface.co/datasets/me/x", "say hf://datasets/USER/NAME"),
        ("file://host/x", "expected file:///absolute/path"),
    ],
)
def test_places_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_place(text)


def test_wrong_directions_are_told(tmp_path: Path) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    cases: list[tuple[Any, tuple[Any, Any], str]] = [
        (push, (source, "hf://datasets/me/x"), "expected hf://me/x for this encoder, found hf://datasets/me/x"),
        (push, (source, "hf://me/x@v1"), "leave out @v1"),
        (push, ("hf://me/x", tmp_path / "out"), "'vrl3data pull' fetches it"),
        (pull, (source, "hf://me/x"), "'vrl3data push' sends them there"),
        (push, (tmp_path / "no", tmp_path / "out"), "there is no such directory"),
        (pull, (source / "encoder.json", tmp_path / "out"), "expected a directory, found a file"),
    ]
    for act, arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            act(*arguments)


# -- the parts -------------------------------------------------------------------------------------------------


def test_digests_are_those_of_the_tools_that_made_them_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    found = digests(tmp_path / "file", ("sha256", "git-sha1"))
    assert found["git-sha1"] == "ce013625030ba8dba906f756967f9e9ca394464a"  # `echo hello | git hash-object --stdin`
    assert found["sha256"] == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


def test_every_name_that_may_arrive_is_a_name_of_ours() -> None:
    assert all(".." not in name and not name.startswith("/") for name in bundles.FIXED)
    for kind in ("encoder", "policy"):
        names = {file.name for file in bundles.parse(kind, json.dumps({"sha256": "0" * 64}).encode()).files}
        assert names <= set(bundles.FIXED)


def test_what_an_earlier_attempt_left_does_not_come_along(tmp_path: Path) -> None:
    source = write_thing(tmp_path / "source", "encoder")
    incoming = tmp_path / ".out.incoming"
    (incoming / "data").mkdir(parents=True)
    (incoming / "data" / "train-000000.tar").write_bytes(b"x")
    (incoming / "link").symlink_to(tmp_path)
    (incoming / "encoder.safetensors").symlink_to(source / "encoder.safetensors")
    pull(source, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"encoder.json", "encoder.safetensors"}
    assert not (tmp_path / "out" / "encoder.safetensors").is_symlink()
    assert transfer._sibling(tmp_path / "out", transfer.INCOMING) == incoming


# -- the command -----------------------------------------------------------------------------------------------


def test_the_commands_print_their_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vrl3data.cli import publish

    source = write_thing(tmp_path / "source", "dataset")
    found = fingerprint(source, "dataset")

    def called(command: Any, *arguments: object) -> str:
        command.main([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    dry = called(publish.push, source, "hf://datasets/me/door", "--dry-run")
    assert "hf://datasets/me/door (private)" in dry
    assert "would be sent:\n" in dry
    assert "  data/train-000000.tar  " in dry
    assert found in called(publish.push, source, tmp_path / "out")
    receipt = json.loads(called(publish.pull, tmp_path / "out", tmp_path / "back", "--json", "--quiet"))
    assert (receipt["kind"], receipt["fingerprint"], receipt["dry_run"]) == ("dataset", found, False)
    assert receipt["bytes"] == sum(receipt["files"].values())
    assert "there already" in called(publish.pull, tmp_path / "out", tmp_path / "back")


def test_receipts_are_json() -> None:
    assert json.loads(json.dumps(Receipt("encoder", "a", "b", "0", {"x": 1}).to_json()))["bytes"] == 1

"""The shape of the project: who may import whom, what is public, what importing costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_cli, write_dataset

import vrl3data
from converters import KINDS
from converters.export import EXPORTS
from vrl3data import codecs, envs, guard
from vrl3data.cli import COMMANDS
from vrl3data.errors import ConfigError

LAYERS = [
    ["vrl3data", "vrl3data.errors"],
    ["vrl3data.schema", "vrl3data.config", "vrl3data.report", "vrl3data.guard", "vrl3data.interrupt"],
    ["vrl3data.codecs", "vrl3data.manifest", "vrl3data.index", "vrl3data.shard", "vrl3data.sample",
     "vrl3data.encode", "vrl3data.units", "vrl3data.preview", "vrl3data.storage", "vrl3data.scan", "vrl3data.derive",
     "vrl3data.linked", "vrl3data.metrics", "vrl3data.address", "vrl3data.folder", "vrl3data.members",
     "vrl3data.cache", "vrl3data.transport", "vrl3data.remote"],
    ["vrl3data.writer", "vrl3data.dataset", "vrl3data.stored", "vrl3data.stats", "vrl3data.validation",
     "vrl3data.checks", "vrl3data.record", "vrl3data.takeover", "vrl3data.splits", "vrl3data.sampling",
     "vrl3data.order", "vrl3data.exchange", "vrl3data.workers", "vrl3data.envs"],
    ["vrl3data.images", "vrl3data.encoders", "vrl3data.loader", "vrl3data.replay", "vrl3data.delivery",
     "vrl3data.recycle", "vrl3data.torch_batches", "vrl3data.window_spec", "vrl3data.windows", "vrl3data.stream",
     "vrl3data.mixing", "vrl3data.tools"],
    ["converters", "pretrain", "cards"],
    ["vrl3data.app"],
    ["vrl3data.rl"],
    ["vrl3data.cli", "vrl3data.__main__"],
]  # fmt: skip
SEPARATE = ("converters", "pretrain", "cards")
HEAVY = ("torch", "torchvision", "timm", "mujoco", "datasets", "webdataset", "gymnasium")


def layer_of(module: str) -> tuple[int, str]:
    """The layer of the longest name in LAYERS that `module` is or lies in."""
    names = [(len(name), number, name) for number, layer in enumerate(LAYERS) for name in layer
             if module == name or (module.startswith(name + ".") and name != "vrl3data")]  # fmt: skip
    assert names, f"{module} is in no layer"
    return max(names)[1:]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.partition(".")[0] in ("vrl3data", *SEPARATE)}
    return {name if _is_module(name) else name.rpartition(".")[0] for name in ours}


def _is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def sources() -> list[tuple[str, Path]]:
    files = [path for package in ("vrl3data", *SEPARATE) for path in (ROOT / package).rglob("*.py")]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]


def test_imports_only_fall() -> None:
    wrong = []
    for module, path in sources():
        own_layer, own_place = layer_of(module)
        for name in imports(path) - {"vrl3data"}:
            layer, place = layer_of(name)
            if module == "vrl3data":
                continue  # the façade names everything, but imports it only on use: see the next test
            if layer > own_layer or (place != own_place and {place, own_place} <= set(SEPARATE)):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_only_the_command_line_catches_everything() -> None:
    for module, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                kinds = re.findall(r"\w+", ast.unparse(node.type)) if node.type else ["Exception"]
                broad = bool({"Exception", "BaseException"} & set(kinds))
                rethrown = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                assert not broad or rethrown or module == "vrl3data.cli", f"{module}:{node.lineno}"


def test_nothing_is_unpickled_but_by_the_restricted_reader() -> None:
    users = set()
    for module, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in ("pickle", "dill", "marshal", "shelve") for name in names):
                users.add(module)
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert ast.unparse(node.value) == str(node.arg == "weights_only"), f"{module}:{node.value.lineno}"
    assert users == {"converters.adroit.pickles"}


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(name for name in sys.modules if '.' not in name))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_what_importing_costs(tmp_path: Path) -> None:
    assert not {"numpy", "click", *HEAVY} & modules_after("import vrl3data")
    help_ = "from vrl3data.cli import run\ntry:\n    run(['--help'])\nexcept SystemExit:\n    pass"
    assert not {"numpy", "pyarrow", "PIL", *HEAVY} & modules_after(help_)
    path = write_dataset(tmp_path / "set", 1)
    read = f"import vrl3data; vrl3data.open({str(path)!r})[0]['obs.image.top'].sum()"
    assert "numpy" in modules_after(read)
    assert not set(HEAVY) & modules_after(read)
    assert not set(HEAVY) - {"gymnasium"} & modules_after("import vrl3data; vrl3data.convert")


def test_public_names() -> None:
    assert sorted(vrl3data.__all__) == sorted(vrl3data._PUBLIC)
    for name in vrl3data.__all__:
        assert callable(getattr(vrl3data, name))
        assert name in dir(vrl3data)
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        vrl3data.opne  # noqa: B018


@pytest.mark.parametrize(
    "place", [*vrl3data._PUBLIC.values(), *KINDS.values(), *EXPORTS.values(), *codecs.CODECS.values(),
              *envs.ENVS.values(), *envs.DEMONSTRATORS.values(), *(entry[0] for entry in COMMANDS.values())]
)  # fmt: skip
def test_tables_name_things_that_exist(place: str) -> None:
    module, attribute = place.split(":")
    assert hasattr(importlib.import_module(module), attribute)


def test_a_foreign_package_in_place_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.check_neighbours()
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "__init__.py").write_text("raise SystemExit('this must not run')")
    code = "import vrl3data\ntry:\n    vrl3data.open\nexcept Exception as error:\n    print(error)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "vrl3data needs its own package 'cards'" in result.stdout
    assert str(tmp_path / "cards" / "__init__.py") in result.stdout
    result = run_cli("--help", cwd=tmp_path)
    assert result.returncode == 2
    assert "error: vrl3data needs its own package 'cards'" in result.stderr
    monkeypatch.setattr(guard, "NEIGHBOURS", ("no_such_package",))
    with pytest.raises(ConfigError, match="Python finds none"):
        guard.check_neighbours()


def test_nothing_names_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    for name in listed:
        if (ROOT / name).suffix in (".py", ".md", ".toml", ".json", ".yml", ".txt", ".html"):
            assert str(ROOT.parent) + "/" not in (ROOT / name).read_text(), name

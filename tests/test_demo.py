"""`vrl3data demo`, small: the whole path runs, says what it found, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cli
from PIL import Image

import vrl3data
from cards.html.plot import line_plot
from cards.html.run_page import Bar, RunPage, curves, write_run_page
from vrl3data.errors import ConfigError
from vrl3data.report import Silent
from vrl3data.rl.demo import DemoOptions, demo
from vrl3data.rl.policy import Policy

SMALL = [
    "--demonstrations", "4", "--goals", "3", "--set", "stage2.bc_updates=4", "--set", "stage2.updates=3", "--set",
    "stage3.frames=24", "--set", "batch_size=8", "--set", "agent.hidden_dim=16", "--set", "stage3.demo_batch=4",
]  # fmt: skip


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    first = run_cli("demo", tmp_path / "demo", *SMALL)
    assert first.returncode == 0, first.stderr
    for line in ("random policy", "stage 2, random encoder", "stage 2, packaged encoder", "after stage 3"):
        assert line in first.stdout
    home = tmp_path / "demo"
    assert vrl3data.open(home / "fetch-reach").manifest.samples == 4
    assert vrl3data.Encoder.from_pretrained(home / "encoder").spec.in_channels == 9
    facts = Policy.from_pretrained(home / "policy").spec.provenance
    assert facts["encoder"]["objective"] == "supervised"
    with Image.open(home / "policy.gif") as film:
        assert film.n_frames > 3
    page = (home / "demo.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/gif") == 1
    again = json.loads(run_cli("demo", home, *SMALL, "--json", "-q").stdout)
    assert again["scores"]["after stage 3"]["episodes"] == 3
    assert f"{again['scores']['after stage 3']['success']:.2f}" in first.stdout


def test_a_page_of_a_run_escapes_what_it_shows(tmp_path: Path) -> None:
    rows = [{"step": step, "bc": 1 / (step + 1), "other": None} for step in range(400)]
    plots = curves(rows, {"bc": "cloning <b>", "other": "nothing", "missing": "no"})
    assert [plot.title for plot in plots] == ["cloning <b>"]
    bars, curve = [Bar("c&d", 0.5, 0.25, 0.75)], {"run": plots}
    page = RunPage("a <script>", "b", bars, "e", b"GIF89a", "f", curve, [("x", "1")], [("y", "z")])
    text = write_run_page(page, tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "a &lt;script&gt;" in text
    assert "cloning &lt;b&gt;" in text
    assert "width:50.0%" in text
    assert "left:25.0%;width:50.0%" in text


def test_curves_keep_the_mean_of_what_they_thin() -> None:
    rows = [{"bc": float(step % 2)} for step in range(1600)]
    (plot,) = curves(rows, {"bc": "x"})
    flat = line_plot("x", [[0.5], [0.5]])
    assert plot.lines[0].path.count("l") == 159
    assert plot.y_ticks[0].text == flat.y_ticks[0].text


def test_a_wrong_encoder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        demo(tmp_path / "demo", DemoOptions(stage1=str(tmp_path / "nowhere")), Silent())
    assert not (tmp_path / "demo").exists()

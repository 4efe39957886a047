"""The cards of encoders and policies: right, loadable, honest about what is unknown, safe from what sidecars say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cards import encoder_card, policy_card
from cards.encoder_card import SIDECAR as ENCODER_JSON
from cards.policy_card import SIDECAR as POLICY_JSON
from cards.text import SHOWN_FACTS, SHOWN_LENGTH, escaped, facts, license_fields, plain, shown, word
from vrl3data.encoders.encoder import SIDECAR, WEIGHTS, Encoder, EncoderSpec
from vrl3data.errors import ConfigError, DamagedError, DestinationError
from vrl3data.rl.policy import SIDECAR as RL_SIDECAR
from vrl3data.rl.policy import WEIGHTS as RL_WEIGHTS
from vrl3data.rl.policy import Policy, PolicySpec

NASTY = "evil | `x`\n---\n# head\u2028 <script>alert(1)</script> ![p](http://e.vil/p.png) \"'{{ 7*7 }}\x07\ud800: &id"
PROVENANCE = {
    "objective": "supervised",
    "config": {"lr": 0.1, "recipe": "fast", "augment": {"flip": True}},
    "data": {"name": "imagenette", "fingerprint": "ab" * 32, "license": "cc-by-nc-4.0", "split": "train"},
    "versions": {"vrl3data": "0.1.0", "torch": "2.15.0"},
    "images": 2600,
    "steps": 7200,
    "scores": {"val_top1": 0.8133, "probe": {"knn_top1": 0.7, "images": 600}, "broken": float("nan")},
    "val": {"name": "imagenette-val", "fingerprint": "cd" * 32},
}
POLICY = {
    "checkpoint_version": 1,
    "kind": "policy",
    "env": "fetch-reach",
    "env_options": {"max_steps": 25},
    "cameras": ["main"],
    "frames": 3,
    "image_size": 84,
    "sensor_dim": 0,
    "action_dim": 4,
    "action_low": [-1.0] * 4,
    "action_high": [1.0] * 4,
    "encoder": "resnet6_32channel",
    "provenance": {
        "stage": "stage3",
        "preset": "paper",
        "data": {"name": "reach", "fingerprint": "ab" * 32, "license": "unknown"},
        "encoder": {"objective": "supervised", "hub": "me/eyes"},
        "scores": {"success": 0.73, "success_low": 0.64, "success_high": 0.81, "episodes": 100},
        "evaluation": {"episodes": 100, "seeds": "500000 on", "action": "mean"},
    },
    "sha256": "ef" * 32,
}


def save(path: Path, provenance: dict[str, Any] | None = None, channels: int = 3) -> Path:
    torch.manual_seed(0)
    spec = EncoderSpec("resnet6_32channel", channels, provenance=PROVENANCE if provenance is None else provenance)
    return Encoder(spec).save_pretrained(path)


def sidecar(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / ENCODER_JSON).read_text())
    return found


def front(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def cells(card: str, start: str) -> list[str]:
    """The cells of the first table row that starts with `start`."""
    row = next(line for line in card.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def check_front(card: str) -> ModelCardData:
    """What huggingface_hub demands of a card offline, and what the hub's schema of the fields that we use demands."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    found = front(card)
    assert re.fullmatch(r"[a-z0-9.-]+", found["license"])
    assert (found["license"] == "other") == ("license_name" in found)
    assert found["library_name"] == "vrl3data"
    assert found["pipeline_tag"] in ("image-feature-extraction", "reinforcement-learning")
    assert all(isinstance(tag, str) and tag for tag in found["tags"])
    for name in [*found.get("datasets", []), *([found["base_model"]] if "base_model" in found else [])]:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    again = yaml.safe_load(data.to_yaml())
    assert {key: again[key] for key in found if key != "model-index"} == {
        key: value for key, value in found.items() if key != "model-index"
    }
    if "model-index" in found:
        assert again["model-index"] == found["model-index"]
    return data


# -- encoders --------------------------------------------------------------------------------------------------


def test_the_card_of_an_encoder_says_what_it_is(tmp_path: Path) -> None:
    card = encoder_card.encoder_card(sidecar(save(tmp_path)))
    data = check_front(card)
    assert data.license == "unknown"
    assert data.pipeline_tag == "image-feature-extraction"
    assert cells(card, "features")[1] == "`256`"
    assert cells(card, "parameters")[1] == "398,208"  # algorithms.md 1.1, as resnet.py says
    assert cells(card, "input")[1] == "N x 3 x 84 x 84 (1 RGB image)"
    assert "0.485, 0.456, 0.406" in cells(card, "normalisation")[1]
    assert cells(card, "name")[1] == "`imagenette`"
    assert cells(card, "fingerprint")[1] == f"`{'ab' * 32}`"
    assert cells(card, "license")[1] == "`cc-by-nc-4.0`"
    assert "under the licence named above, which may restrict what the weights can be used for" in card
    assert "A licence of the weights themselves is not stated." in card
    assert cells(card, "augment.flip")[1] == "`yes`"
    assert cells(card, "versions")[1] == "vrl3data 0.1.0, torch 2.15.0"
    assert "right one, 0 to 1" in cells(card, "`val_top1`")[2]
    assert sidecar(tmp_path)["sha256"] in card


def test_the_scores_of_an_encoder_reach_the_hub(tmp_path: Path) -> None:
    results = check_front(encoder_card.encoder_card(sidecar(save(tmp_path)))).eval_results
    assert results is not None
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("accuracy", 0.8133),
        ("probe.knn_top1", 0.7),
    ]
    assert isinstance(results[0], EvalResult)
    assert (results[0].dataset_name, results[0].dataset_type) == ("imagenette-val", "imagenette-val")
    assert results[0].task_type == "image-feature-extraction"


def test_the_example_of_an_encoder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = encoder_card.write_card(save(tmp_path, channels=9)).read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert capsys.readouterr().out == "torch.Size([1, 256])\n"
    assert "(3 RGB images, oldest frame first)" in card


def test_what_is_unknown_is_said(tmp_path: Path) -> None:
    card = encoder_card.encoder_card(sidecar(save(tmp_path, {})))
    check_front(card)
    assert "model-index" not in front(card)
    assert "datasets" not in front(card)
    for label in ("name", "fingerprint", "license", "versions"):
        assert cells(card, label)[1] == "`unknown`"
    for sentence in (
        "The licence of the training data is unknown: find out before you publish or sell what was made from it.",
        "A licence of the weights themselves is not stated.",
        "The configuration is unknown.",
        "None are recorded: how good the features are is unknown.",
    ):
        assert sentence in card
    scored = encoder_card.encoder_card(sidecar(save(tmp_path, {"scores": {"val_top1": 0.5}})))
    assert "On which data they were measured is not recorded." in scored
    assert check_front(scored).eval_results[0].dataset_name == "unknown (not recorded)"  # type: ignore[index]


def test_an_inflated_encoder_does_not_claim_the_scores(tmp_path: Path) -> None:
    made = {**PROVENANCE, "inflated": {"frames": 3, "cameras": 1, "hub": "me/eyes"}}
    card = encoder_card.encoder_card(sidecar(save(tmp_path, made, channels=9)))
    assert "model-index" not in front(card)
    assert "They may be those of the encoder of single images" in card
    assert check_front(card).base_model == "me/eyes"
    assert front(card)["tags"][-1] == "supervised"


def test_only_names_of_the_hub_become_links(tmp_path: Path) -> None:
    assert "datasets" not in front(encoder_card.encoder_card(sidecar(save(tmp_path))))
    linked = {**PROVENANCE, "data": {"name": "imagenette", "hub": "me/imagenette"}, "license": "MIT"}
    card = encoder_card.encoder_card(sidecar(save(tmp_path, linked)))
    data = check_front(card)
    assert (data.datasets, data.license) == (["me/imagenette"], "mit")
    assert "Licence of the weights, as stated by whoever made them: MIT" in card


@pytest.mark.parametrize(
    "wrong",
    [
        {"arch": "resnet9000"},
        {"arch": 7},
        {"in_channels": 3 * 10**12},
        {"in_channels": "many", "image_size": None},
        {"mean": None},
        {"mean": [NASTY], "std": {"a": 1}},
        {"provenance": [1, 2]},
        {"provenance": {"data": "imagenette", "scores": [0.5], "config": "fast", "versions": 3, "val": 7}},
    ],
)
def test_odd_sidecars_still_get_a_card(tmp_path: Path, wrong: dict[str, Any]) -> None:
    card = encoder_card.encoder_card({**sidecar(save(tmp_path)), **wrong})
    check_front(card)
    if "arch" in wrong or wrong.get("in_channels"):
        assert cells(card, "features")[1] == "`unknown`"
        assert cells(card, "parameters")[1] == "`unknown`"
    if wrong.get("in_channels") == "many":
        assert "Unknown: the sidecar does not say which images it takes." in card


# -- policies --------------------------------------------------------------------------------------------------


def test_the_card_of_a_policy_says_what_it_is() -> None:
    card = policy_card.policy_card(POLICY)
    data = check_front(card)
    assert data.pipeline_tag == "reinforcement-learning"
    assert data.base_model == "me/eyes"
    assert "fetch-reach" in front(card)["tags"]
    assert "# fetch-reach, paper, stage3\n" in card
    assert cells(card, "environment")[1] == "`fetch-reach`"
    assert cells(card, "environment, max")[1] == "`25`"
    assert cells(card, "cameras")[1] == "`main`"
    assert cells(card, "stacked frames")[1] == "`3`"
    assert cells(card, "numbers of the sensor")[1] == "`0`"
    assert cells(card, "lowest action")[1] == r"\[-1.0, -1.0, -1.0, -1.0\]"
    assert cells(card, "architecture")[1] == "`resnet6_32channel`"
    assert cells(card, "origin, objective")[1] == "`supervised`"
    assert cells(card, "seeds")[1] == "500000 on"
    assert "succeed at their last step" in cells(card, "`success`")[2]
    assert f"`{'ef' * 32}`" in card
    results = data.eval_results
    assert results is not None
    assert [(result.metric_type, result.metric_value) for result in results] == [("success_rate", 0.73)]
    assert results[0].dataset_name == "fetch-reach"


def test_what_is_unknown_of_a_policy_is_said() -> None:
    card = policy_card.policy_card({})
    check_front(card)
    assert "model-index" not in front(card)
    for label in ("environment", "cameras", "stacked frames", "image size", "numbers of an action", "architecture",
                  "origin", "name", "fingerprint", "license", "versions"):  # fmt: skip
        assert cells(card, label)[1] == "`unknown`", label
    assert "None are recorded: how often it succeeds is unknown." in card
    alone = policy_card.policy_card({"provenance": {"data": None}})
    assert "It was trained without a dataset." in alone
    assert "licence of the training data" not in alone
    assert "The configuration is unknown." in card
    assert "is not recorded" in policy_card.policy_card({"provenance": {"scores": {"success": 1.0}}})


def test_a_real_policy_gets_a_card_whose_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = PolicySpec("fetch-reach", action_dim=4, sensor_dim=3, sensor="obs.proprio", hidden_dim=8, trunk_dim=4)
    card = policy_card.write_card(Policy(spec).save_pretrained(tmp_path)).read_text()
    check_front(card)
    assert cells(card, "architecture")[1] == "none, it sees sensors only"
    assert "| origin |" not in card
    assert cells(card, "sensor")[1] == "`obs.proprio`"
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert capsys.readouterr().out.startswith("fetch-reach")


# -- both ------------------------------------------------------------------------------------------------------


def hostile(value: Any) -> Any:
    """The same JSON with every string and key replaced by text that wants out."""
    if isinstance(value, dict):
        return {key if key in KEPT else key + NASTY: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return NASTY if isinstance(value, str) else value


KEPT = {*POLICY, *PROVENANCE, "in_channels", "mean", "std", "name", "license", "fingerprint", "arch", "dtype", "hub"}


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    encoder = sidecar(save(tmp_path, {**PROVENANCE, "license": "x", "evaluation": {"seed": "x"}}))
    made = [encoder_card.encoder_card({**hostile({**encoder, "provenance": {**encoder["provenance"], "hub": "x"}})}),
            policy_card.policy_card(hostile(POLICY))]  # fmt: skip
    for card in made:
        check_front(card)
        body = card.split("---\n", 2)[2]
        for wanted in ("<script", "![p]", "\x07", "\u2028", "\ud800"):
            assert wanted not in body, wanted
        assert not [line for line in body.splitlines() if line.startswith("---")]
        assert body.count("\n# ") == 1
        assert body.count("```") == 2
        assert not re.search(r"(?<![\\\w.])49(?!\w)", body)
        for line in body.splitlines():
            if line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4), line


def test_cards_are_written_whole_and_kept(tmp_path: Path) -> None:
    save(tmp_path)
    path = encoder_card.write_card(tmp_path)
    assert path == tmp_path / "README.md"
    made = path.read_text()
    path.write_text("by hand")
    assert encoder_card.write_card(tmp_path, overwrite=False).read_text() == "by hand"
    assert encoder_card.write_card(tmp_path).read_text() == made
    (tmp_path / ".README.md.tmp").mkdir()
    with pytest.raises(DestinationError, match="cannot write"):
        encoder_card.write_card(tmp_path)


def test_sidecars_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no encoder\.json in this directory"):
        encoder_card.write_card(tmp_path)
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "expected a JSON object, found list"),
        ("[" * 99999, "not JSON"),
    ):
        (tmp_path / POLICY_JSON).write_text(text)
        with pytest.raises(DamagedError, match=message):
            policy_card.write_card(tmp_path)
    (tmp_path / POLICY_JSON).unlink()
    (tmp_path / POLICY_JSON).mkdir()
    with pytest.raises(DamagedError, match=r"policy\.json cannot be read"):
        policy_card.write_card(tmp_path)


def test_the_names_of_the_files_are_those_that_are_saved() -> None:
    assert (encoder_card.SIDECAR, encoder_card.WEIGHTS) == (SIDECAR, WEIGHTS)
    assert (policy_card.SIDECAR, policy_card.WEIGHTS) == (RL_SIDECAR, RL_WEIGHTS)


def test_json_is_shown_in_bounds() -> None:
    assert len(facts({f"key{number}": number for number in range(500)})) == SHOWN_FACTS + 1
    assert facts({f"key{number}": number for number in range(500)})[-1] == ("…", "440 more, in the JSON file")
    assert len(shown("x" * 5000)) == SHOWN_LENGTH
    assert [shown(value) for value in (True, None, 0.123456, [1, 2], {"a": "b"})] == [
        "yes", "none", "0.1235", "[1, 2]", '{"a": "b"}'
    ]  # fmt: skip
    assert facts("no object") == []
    assert license_fields("My Lab: ask!") == {"license": "other", "license_name": "my-lab-ask"}
    assert license_fields(" ") == {"license": "unknown"}
    assert plain("a\x00\n b") == "a b"
    assert escaped("*a*") == r"\*a\*"
    assert word("a b/`c`") == "a_b__c_"

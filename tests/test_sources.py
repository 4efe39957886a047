"""docs/sources.md says what becomes of every real file; this is what becomes of them now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_of_sources_is_true(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    sys.modules.pop("make_sources", None)
    import make_sources

    now = make_sources.text(real_data).splitlines()
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").splitlines()
    assert now == page, "run docs/make_sources.py"

"""Whether a converter keeps the contract of converters/base.py: for whoever writes one, here or elsewhere."""

from __future__ import annotations

CHECKS = {
    "class": "has a docstring, and Options: a frozen dataclass with defaults, shard_size, and no name that is taken",
    "recognises": "knows its source by content, and neither an empty file nor a folder of text",
    "plan": "planning twice gives the same plan",
    "units": "there are as many units as the plan counts, with unique names that can be stored",
    "schema": "every unit that is read fits the schema, and has the name of its unit",
    "again": "reading a unit twice gives the same sample",
    "order": "reading in reverse order gives the same samples",
    "close": "after close, and after a second close, it reads again",
    "pickle": "converter and units travel to worker processes",
    "source": "samples state their file and its sha256, and the plan finds that file",
    "jobs": "one and two worker processes write the same shards",
    "interrupted": "stopping half way and going on writes the same shards",
    "valid": "vrl3data validate finds no error in what was written",
    "private": "no absolute path, user or host name of this machine is written",
    "truncated": "files that are cut off end in a SourceError, or can be read, and nothing else",
    "emptied": "files without content end in a SourceError",
    "untouched": "the source is as it was",
}
"""name -> what holds if the check passes. In this order; each is a function of converters/conformance/."""
PLACES = {
    "converters.conformance.contract": ("class", "recognises", "plan", "units", "pickle"),
    "converters.conformance.samples": ("schema", "again", "order", "close", "source"),
    "converters.conformance.writing": ("jobs", "interrupted", "valid", "private"),
    "converters.conformance.damage": ("truncated", "emptied", "untouched"),
}
"""module -> the checks whose functions `check_NAME` are in it."""
NEEDED = ("class", "plan", "units", "schema")
"""Without these nothing else can be checked."""

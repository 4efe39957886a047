"""URLs of datasets: which ones are known, what may be shown of them, and which files are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vrl3data.errors import ConfigError, did_you_mean

SCHEMES = ("http", "https", "s3", "hf", "memory")
"""`file://` too, which is a folder like any other."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SQUASHED = re.compile(r"(https?|s3|hf|memory|file):/[^/]")
_HUB = re.compile(r"datasets/([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(?:@([A-Za-z0-9._/-]+))?")


@dataclass(frozen=True, repr=False)
class Address:
    """Where a remote dataset lies. As text it has no user, password or query: they may be secrets.

    `base` is what fsspec takes (with them), `query` follows the name of every file, `revision` is the hub's.
    """

    scheme: str
    base: str
    query: str = ""
    revision: str | None = None

    def of(self, name: str) -> str:
        """The full address of a file of the dataset; `name` is one of ours, never one from outside."""
        return f"{self.base}/{name}{'?' + self.query if self.query else ''}"

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or "" if self.scheme.startswith("http") else ""

    def __str__(self) -> str:
        if self.scheme.startswith("http"):
            parts = urlsplit(self.base)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        revision = f"@{self.revision}" if self.revision else ""
        prefix = "datasets/" if self.scheme == "hf" else ""
        return f"{self.scheme}://{prefix}{self.base.lstrip('/')}{revision}"

    __repr__ = __str__


def is_url(place: Path | str) -> bool:
    """Whether this is an address rather than a path on this machine. ConfigError for a URL given as a Path."""
    text = str(place)
    if isinstance(place, Path) and _SQUASHED.match(text):
        raise ConfigError(f"a URL is text, not a Path, which makes {text.partition('/')[0]}/... of it")
    return _URL.fullmatch(text) is not None


def parse(text: str) -> Address | Path:
    """The place that a URL names; a Path for `file://`. ConfigError if it is none that we read."""
    match = _URL.fullmatch(text)
    assert match is not None
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError("expected file:///absolute/path")
        return Path(unquote(parts.path))
    if scheme not in SCHEMES:
        raise ConfigError(f"no way to read from {scheme}://{did_you_mean(scheme, [*SCHEMES, 'file'])}")
    if scheme == "hf":
        hub = _HUB.fullmatch(rest.rstrip("/"))
        if hub is None:
            raise ConfigError("expected hf://datasets/USER/NAME, with @REVISION if need be")
        return Address(scheme, hub[1], revision=hub[2])
    plain, _, query = rest.partition("#")[0].partition("?")
    plain = plain.rstrip("/")
    if not plain or (scheme == "s3" and "/" not in plain):
        raise ConfigError(f"the address does not name a dataset; expected {scheme}://HOST-OR-BUCKET/FOLDER")
    if scheme in ("http", "https"):
        _check_host(f"{scheme}://{plain}")
        return Address(scheme, f"{scheme}://{plain}", query)
    return Address(scheme, plain.rpartition("@")[2] if scheme == "s3" else plain)


def _check_host(url: str) -> None:
    try:
        found = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        found = False
    if not found:
        raise ConfigError("the address has no host and port that can be used")

"""Byte ranges of remote files through fsspec, each with the identity of the file it came from.

Errors of other libraries end here: they hold addresses with secrets, and nobody can act on them.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from vrl3data.address import Address
from vrl3data.errors import ConfigError, MissingExtra, SourceError

CONCURRENT = 8
"""Requests under way at a time."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Silence of the server after which a request is given up."""
SLOWEST = 50_000
"""Bytes per second below which a request is given up, so that a dripping server cannot hold a run for ever."""

LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[?::1\]?", re.IGNORECASE)
TRANSIENT_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


class Range(NamedTuple):
    """Bytes [start, stop) of a file of the dataset."""

    name: str
    start: int
    stop: int


class Answer(NamedTuple):
    """The bytes, fewer than asked for only where the file ends; its size; what tells its versions apart."""

    data: bytes
    total: int
    tag: str


@dataclass(frozen=True)
class Failure:
    """Why a range did not come. `wait` is what the server asks for, in seconds."""

    kind: Literal["missing", "refused", "no ranges", "outside", "transient", "final"]
    reason: str
    wait: float = 0.0


class Transport(Protocol):
    """A connection of this process. It does not survive a fork: a child makes its own."""

    def read(self, ranges: Sequence[Range]) -> list[Answer | Failure]: ...


def connect(address: Address, options: Mapping[str, Any]) -> Transport:
    """A transport for `address`. `options` go to the file system of fsspec. MissingExtra if a package is missing."""
    if address.scheme == "s3":
        return _S3(address, options)
    if address.scheme in ("http", "https"):
        return _Http(address, options)
    assert address.scheme == "memory", address
    return _Plain(address, _filesystem("memory", options))


def resolve(address: Address) -> tuple[Address, dict[str, Any]]:
    """A place on the hub as its files over https, at one commit so that what is fetched fits together.

    Returns the address to read from and the options that go with it. SourceError if the hub does not know it.
    """
    if address.scheme != "hf":
        return address, {}
    from huggingface_hub import HfApi, constants, errors, get_token

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    unreachable: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        commit = str(api.repo_info(address.base, repo_type="dataset", revision=address.revision).sha)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise SourceError("the hub has no such dataset or revision, or it is private: 'hf auth login'") from None
    except errors.HFValidationError:
        raise ConfigError("expected hf://datasets/USER/NAME, with @REVISION if need be") from None
    except (unreachable, OSError, errors.OfflineModeIsEnabled) as error:
        raise SourceError(f"the hub cannot be asked: {type(error).__name__}") from None
    endpoint = (api.endpoint or constants.ENDPOINT).rstrip("/")
    scheme, token = endpoint.partition("://")[0], get_token()
    headers = {"headers": {"Authorization": f"Bearer {token}"}} if token else {}
    return Address(scheme, f"{endpoint}/datasets/{address.base}/resolve/{commit}"), headers


def of_status(status: int, what: str = "", wait: float = 0.0) -> Failure:
    """What an HTTP status means for us."""
    said = f"HTTP {status}{' ' + what if what else ''}"
    if status in (404, 410):
        return Failure("missing", said)
    if status in (401, 403, 407):
        return Failure("refused", f"access is refused ({said})")
    if status == 416:
        return Failure("outside", said)
    kind: Literal["transient", "final"] = "transient" if status in TRANSIENT_STATUS else "final"
    return Failure(kind, f"the server answered {said}", wait)


class _Async(ABC):
    """What file systems with an event loop share: some requests at a time, each with a limit of time."""

    def __init__(self, filesystem: Any, failed: Callable[[Exception], Failure]) -> None:
        self.fs, self.failed = filesystem, failed

    def read(self, ranges: Sequence[Range]) -> list[Answer | Failure]:
        return _module("fsspec.asyn").sync(self.fs.loop, self._all, ranges)

    async def _all(self, ranges: Sequence[Range]) -> list[Answer | Failure]:
        free = asyncio.Semaphore(CONCURRENT)

        async def one(wanted: Range) -> Answer | Failure:
            async with free:
                limit = CONNECT_SECONDS + READ_SECONDS + (wanted.stop - wanted.start) / SLOWEST
                return await self._timed(self.one(wanted), limit)

        return list(await asyncio.gather(*(one(wanted) for wanted in ranges)))

    async def _timed(self, answer: Awaitable[Answer | Failure], limit: float) -> Answer | Failure:
        try:
            return await asyncio.wait_for(answer, limit)
        except TimeoutError:
            return Failure("transient", "the server did not answer in time")
        except self.foreign() as error:
            return self.failed(error)

    def foreign(self) -> tuple[type[Exception], ...]:
        return (OSError, EOFError)

    @abstractmethod
    async def one(self, wanted: Range) -> Answer | Failure:
        """One request."""


class _Http(_Async):
    """Ranges over HTTP. A server that would send the whole file is left before it does."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        aiohttp = _module("aiohttp")
        self.address, self.errors = address, aiohttp.ClientError
        seconds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        client = {
            "timeout": seconds, "auto_decompress": False, "trust_env": not LOOPBACK.fullmatch(address.host),
            **options.get("client_kwargs", {}),
        }  # fmt: skip
        self.headers = {**options.get("headers", {}), "Accept-Encoding": "identity"}
        super().__init__(_filesystem("http", {**options, "client_kwargs": client}), _http_failure)
        try:
            self.fs.encode_url(address.of(""))
        except ValueError:
            raise ConfigError("the address cannot be used") from None

    def foreign(self) -> tuple[type[Exception], ...]:
        return (self.errors, OSError, EOFError)

    async def one(self, wanted: Range) -> Answer | Failure:
        session = await self.fs.set_session()
        headers = {**self.headers, "Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        async with session.get(self.fs.encode_url(self.address.of(wanted.name)), headers=headers) as response:
            if response.status == 200:
                response.close()  # without this the whole file would be read to free the connection
                return Failure("no ranges", "the server ignores Range and sends whole files")
            if response.status != 206:
                return of_status(response.status, wait=_seconds(response.headers.get("Retry-After", "")))
            coding = response.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                return Failure("no ranges", f"the server sends ranges as {coding}")
            place = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            total = int(place[3]) if place else 0
            stop = min(wanted.stop, total)
            if place is None or (int(place[1]), int(place[2])) != (wanted.start, stop - 1):
                return Failure("no ranges", "the server sends other bytes than it was asked for")
            data = await response.content.readexactly(stop - wanted.start)
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
            return Answer(data, total, tag)


class _S3(_Async):
    """Ranges of objects. s3fs would try again on its own; we do, and say so."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        _module("s3fs")
        boto: Any = importlib.import_module("botocore.exceptions")
        self.address, self.errors = address, (boto.BotoCoreError, boto.ClientError)
        config = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        config |= {"retries": {"total_max_attempts": 1}}  # type: ignore[dict-item]
        endpoint = options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or ""
        if LOOPBACK.fullmatch(urlsplit(endpoint).hostname or ""):
            config |= {"proxies": {}}  # type: ignore[dict-item]
        config |= options.get("config_kwargs", {})
        super().__init__(_filesystem("s3", {**options, "config_kwargs": config}), _s3_failure)
        self.fs.retries = 1

    def foreign(self) -> tuple[type[Exception], ...]:
        return (*self.errors, OSError, EOFError)

    async def one(self, wanted: Range) -> Answer | Failure:
        bucket, key, _ = self.fs.split_path(self.address.of(wanted.name))
        asked = f"bytes={wanted.start}-{wanted.stop - 1}"
        response = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, Range=asked)
        try:
            place = _CONTENT_RANGE.fullmatch(response.get("ContentRange", ""))
            if place is None:
                return Failure("no ranges", "the server ignores Range and sends whole objects")
            total = int(place[3])
            size = min(wanted.stop, total) - wanted.start
            if int(place[1]) != wanted.start or response.get("ContentLength") != size:
                return Failure("no ranges", "the server sends other bytes than it was asked for")
            data = await response["Body"].read()
        finally:
            response["Body"].close()
        if len(data) != size:
            return Failure("transient", f"{len(data)} of {size} bytes came")
        return Answer(data, total, str(response.get("ETag", "")))


class _Plain:
    """Any other file system of fsspec: ranges by `cat_file`, the identity by `info`."""

    def __init__(self, address: Address, filesystem: Any) -> None:
        self.address, self.fs = address, filesystem

    def read(self, ranges: Sequence[Range]) -> list[Answer | Failure]:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(self._one, ranges))

    def _one(self, wanted: Range) -> Answer | Failure:
        path = self.address.of(wanted.name)
        try:
            facts = self.fs.info(path)
            data = self.fs.cat_file(path, start=wanted.start, end=wanted.stop)
        except FileNotFoundError:
            return Failure("missing", "no such file")
        except OSError as error:
            return Failure("transient", f"{type(error).__name__} of the file system")
        total = int(facts["size"])
        if len(data) != max(0, min(wanted.stop, total) - wanted.start):
            return Failure("transient", f"{len(data)} of {wanted.stop - wanted.start} bytes came")
        return Answer(bytes(data), total, str(facts.get("ETag") or facts.get("mtime") or facts.get("created", "")))


def _http_failure(error: Exception) -> Failure:
    kind = type(error).__name__
    if "Certificate" in kind or "SSL" in kind:
        return Failure("final", f"the connection is not safe ({kind})")
    if "InvalidURL" in kind or "TooManyRedirects" in kind or "Redirect" in kind:
        return Failure("final", f"the address cannot be used ({kind})")
    if isinstance(error, asyncio.IncompleteReadError):
        return Failure("transient", f"{len(error.partial)} of {error.expected} bytes came")
    return Failure("transient", f"the connection failed ({kind})")


def _s3_failure(error: Exception) -> Failure:
    kind = type(error).__name__
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if answer:
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in ("SlowDown", "RequestTimeout"):
            return Failure("transient", f"the server answered {code}")
        return of_status(status, code if re.fullmatch(r"[A-Za-z]+", code) else "")
    if "Credential" in kind or "Token" in kind:
        return Failure("refused", f"there are no credentials ({kind})")
    if isinstance(error, PermissionError):
        return Failure("refused", "access is refused")
    if isinstance(error, FileNotFoundError):
        return Failure("missing", "no such object")
    if "ParamValidation" in kind or "InvalidEndpoint" in kind or "Profile" in kind or "Region" in kind:
        return Failure("final", f"the settings of S3 cannot be used ({kind})")
    return Failure("transient", f"the connection failed ({kind})")


def _seconds(text: str) -> float:
    return min(60.0, float(text)) if text.isascii() and text.isdigit() else 0.0


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "vrl3data[s3]" if name == "s3fs" else "fsspec[http]"
        raise MissingExtra(f"reading from there needs {name}: pip install '{extra}'") from error


def _filesystem(protocol: str, options: Mapping[str, Any]) -> Any:
    """A file system of our own: fsspec's shared ones may have been opened before a fork."""
    try:
        return _module("fsspec").filesystem(protocol, skip_instance_cache=True, **options)
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"these options do not fit {protocol}: {type(error).__name__}") from None

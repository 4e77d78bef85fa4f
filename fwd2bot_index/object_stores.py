"""Objects in Amazon S3 and what speaks its language (``s3://BUCKET/KEY``), Google Cloud Storage (``gs://BUCKET/KEY``)
and Azure (``az://CONTAINER/KEY``).

Credentials, region and endpoint come from the environment, under the names that each cloud's own tools use
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...),
or from the machine (roles of instances and containers); a profile of AWS is read where boto3 is installed. Every wait
is bounded: a request that gets no answer in ``FWD2BOT_STORE_SECONDS`` (60) is tried again twice.

This is the only module that imports obstore. Lance reads and writes its tables by itself, with the options that
:func:`lance_options` gives.
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from fwd2bot_index.errors import InputError, ObjectStoreError

SCHEMES: Final = ("s3", "gs", "az")
RETRIES: Final = 2
_CONNECT_SECONDS: Final = 5
_SECONDS: Final = 60.0
_AT_ONCE: Final = 1000
"""Objects in one page of a listing."""


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether that names an object or a prefix of objects."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """The one name of a file, a folder, an object or a prefix, wherever one is.

    Raises:
        InputError: a URI that no store is known for, or without a bucket.
    """
    return str(Location.of(os.fspath(path))) if is_uri(path) else os.path.abspath(path)


def joined(folder: str | os.PathLike[str], name: str) -> str:
    """The absolute name of what ``name``, if it is not absolute itself, is in ``folder``."""
    if is_uri(name) or not is_uri(folder):
        return absolute(name if is_uri(name) else os.path.join(folder, name))
    return absolute(posixpath.join(os.fspath(folder), name))


def parent(path: str | os.PathLike[str]) -> str:
    """The folder or prefix that something is in."""
    location = absolute(path)
    return posixpath.dirname(location) if is_uri(location) else str(Path(location).parent)


def seconds_to_wait() -> float:
    """For one request.

    Raises:
        InputError: ``FWD2BOT_STORE_SECONDS`` is no number of seconds.
    """
    given = os.environ.get("FWD2BOT_STORE_SECONDS", "")
    try:
        seconds = float(given or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise InputError(f"FWD2BOT_STORE_SECONDS should be a number of seconds, from 0.1 to 3600, not {given!r}.")
    return seconds


def lance_options() -> dict[str, str]:
    """What bounds Lance's own requests as ours; the rest it takes from the environment as we do."""
    return {
        "allow_http": str(_allows_http()).lower(),
        "connect_timeout": f"{_CONNECT_SECONDS}s",
        "timeout": f"{round(1000 * seconds_to_wait())}ms",
        "client_max_retries": str(RETRIES),
        "client_retry_timeout": str(max(1, round(seconds_to_wait()))),
    }


@dataclass(frozen=True)
class Location:
    """What a URI says."""

    scheme: str
    bucket: str
    key: str
    """Without slashes at its ends."""

    @classmethod
    def of(cls, uri: str) -> Location:
        """
        Raises:
            InputError: no store is known for it, or it names no bucket.
        """
        scheme, _, rest = uri.partition("://")
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise InputError(f"{uri} is neither a path nor in a store that is known ({known}).")
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise InputError(f"{uri} names no bucket.")
        return cls(scheme, bucket, "/".join(part for part in key.split("/") if part))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")


class Object(NamedTuple):
    """One that a listing found."""

    name: str
    """Below what was listed."""
    size: int
    mtime_ns: int


class Condition(NamedTuple):
    """Under which an object may be written: that it is still as it was when this was given out."""

    e_tag: str | None
    version: str | None


ABSENT: Final = Condition(None, None)
"""That there is no object of that name."""


class ConditionError(Exception):
    """An object is not as the condition wants it: somebody else was faster."""


class Objects:
    """The objects whose keys begin with one prefix, by the rest of their keys. Threads may share it.

    Every method raises :class:`ObjectStoreError` where the store cannot be reached or refuses, and FileNotFoundError
    where an object is not there.
    """

    def __init__(self, location: Location, *, seconds: float | None = None) -> None:
        """``seconds``: for one request; None: :func:`seconds_to_wait`."""
        self.location = location
        self._seconds = seconds_to_wait() if seconds is None else seconds

    @classmethod
    def at(cls, uri: str) -> Objects:
        return cls(Location.of(uri))

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """
        Raises:
            ValueError: it has more bytes than that; none was read.
        """
        import obstore

        with self._translated():
            found = obstore.get(self._store, name)
            if found.meta["size"] > max_bytes:
                raise ValueError(f"it has {found.meta['size']} bytes; the limit is {max_bytes}")
            return bytes(found.bytes())

    def state(self, name: str) -> Condition:
        """What is different as soon as the object is another."""
        import obstore

        with self._translated():
            meta = obstore.head(self._store, name)
        return Condition(meta["e_tag"], meta["version"])

    def stat(self, name: str) -> Object:
        import obstore

        with self._translated():
            return _object(obstore.head(self._store, name), cut=0)

    def write(self, name: str, content: bytes, *, only_if: Condition | None = None) -> Condition:
        """Whole or not at all. Returns its state.

        Raises:
            ConditionError: the object is not as ``only_if`` says.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "overwrite"
        if only_if == ABSENT:
            mode = "create"
        elif only_if is not None:
            mode = {key: value for key, value in only_if._asdict().items() if value is not None}
        with self._translated():
            try:
                done = obstore.put(self._store, name, content, mode=mode, use_multipart=False if only_if else None)
            except (AlreadyExistsError, PreconditionError) as e:
                raise ConditionError(str(self.location)) from e
        return Condition(done["e_tag"], done["version"])

    def delete(self, name: str) -> None:
        """The object, if there is one."""
        import obstore

        with self._translated(), _missing_is_fine():
            obstore.delete(self._store, name)

    def delete_below(self, name: str) -> None:
        """All objects in that "folder"."""
        import obstore

        names = [f"{name}/{found.name}" for found in self.below(name)]
        with self._translated():
            for start in range(0, len(names), _AT_ONCE):
                obstore.delete(self._store, names[start : start + _AT_ONCE])

    def below(self, name: str = "") -> Iterator[Object]:
        """All objects in that "folder", in the order of their keys."""
        import obstore

        cut = len(name) + 1 if name else 0
        with self._translated():
            pages = iter(obstore.list(self._store, prefix=name or None, chunk_size=_AT_ONCE))
        while True:
            with self._translated():
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                if meta["path"] and not meta["path"].endswith("/"):  # "folders" of web consoles
                    yield _object(meta, cut=cut)

    def names(self) -> set[str]:
        """Of the objects and the "folders" right below."""
        import obstore

        with self._translated():
            found = obstore.list_with_delimiter(self._store)
        return {posixpath.basename(meta["path"]) for meta in found["objects"]} | {
            posixpath.basename(prefix.rstrip("/")) for prefix in found["common_prefixes"]
        }

    @cached_property
    def _store(self) -> Any:
        from obstore.store import AzureStore, GCSStore, S3Store

        kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        options: dict[str, Any] = {
            "prefix": self.location.key or None,
            "client_options": {
                "allow_http": _allows_http(),
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "timeout": timedelta(seconds=self._seconds),
            },
            "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=max(1, self._seconds))},
        }
        if self.location.scheme == "s3" and (profile := _profile()) is not None:
            options["credential_provider"] = profile
        with self._translated():
            return kinds[self.location.scheme](self.location.bucket, **options)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as e:
            raise ObjectStoreError(f"{self.location} cannot be used: {_reason(str(e), self.location)}.") from e
        except FileNotFoundError as e:
            if "NoSuchBucket" in str(e):
                raise ObjectStoreError(f"{self.location} cannot be used: {_no_bucket(self.location)}.") from e
            raise


_opened: dict[str, Objects] = {}
_opening = threading.Lock()


def read_object(uri: str, *, max_bytes: int) -> bytes:
    """The bytes of one object; the connection to its bucket is kept.

    Raises:
        ObjectStoreError, FileNotFoundError: it cannot be read, or is not there.
        ValueError: it has more bytes than that, or none is named.
    """
    location = Location.of(uri)
    if not location.key:
        raise ValueError("it names a bucket and no object")
    bucket = f"{location.scheme}://{location.bucket}"
    with _opening:
        objects = _opened.setdefault(bucket, Objects.at(bucket))
    return objects.read(location.key, max_bytes=max_bytes)


def _object(meta: Any, *, cut: int) -> Object:
    changed = meta["last_modified"]
    mtime_ns = int(changed.timestamp()) * 10**9 + changed.microsecond * 1000
    return Object(meta["path"][cut:], meta["size"], mtime_ns)


@contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:
        if "NoSuchBucket" in str(e):
            raise


def _allows_http() -> bool:
    """Only to an endpoint that the user has named so."""
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"))
    return any(endpoint.startswith("http://") for endpoint in endpoints)


def _profile() -> Any:
    """A provider of the credentials in a profile of AWS, where nothing simpler is given; None: there is none."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if not any(os.path.isfile(os.path.expanduser(file)) for file in files):
        return None
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = Session()
    return Boto3CredentialProvider(session) if session.get_credentials() is not None else None


def problem_of(error: BaseException, location: Location) -> str | None:
    """Why a store could not be reached or refused, by what Lance says; None: that was not it."""
    said = str(error)
    return _reason(said, location) if re.search(r"Generic (S3|GCS|MicrosoftAzure) error|NoSuchBucket", said) else None


def _no_bucket(location: Location) -> str:
    return f"there is no {'container' if location.scheme == 'az' else 'bucket'} {location.bucket}"


_NO_CREDENTIALS: Final = re.compile(
    r"latest/(api/token|meta-data)|computeMetadata|metadata/identity|169\.254\.170\.2|Account must be specified"
)
"""Where the machines of clouds give out credentials: asked last, when there are none of one's own."""


def _reason(said: str, location: Location) -> str:
    """What is wrong, in words that tell what to do about it."""
    if _NO_CREDENTIALS.search(said):
        hint = {
            "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "gs": "GOOGLE_APPLICATION_CREDENTIALS",
            "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
        return f"there are no credentials: set {hint[location.scheme]}"
    if "NoSuchBucket" in said or "ContainerNotFound" in said:
        return _no_bucket(location)
    first = said.split("\n", 1)[0].strip().rstrip(".")
    for mark in ("AccessDenied", "403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        if mark in said:
            return f"the store refuses ({mark}): check the credentials and what they allow"
    if "error sending request" in said or "timed out" in said:
        return f"it does not answer ({first})"
    return first

"""Where an index is kept: a local folder, or a prefix in an object store (``s3://BUCKET/KEY``, ``gs://``, ``az://``).

What is not a Lance table is read and written through a :class:`Place`, by its name in the index, and so is the right to
write.

Notable choices:

- A local folder is held by ``flock``, which goes with the process, however that ends. In an object store the right is a
  *lease*: the object ``.lock``, created only if there is none and renewed every ``RENEW_SECONDS`` by whoever holds it.
  One that was not renewed for ``LEASE_SECONDS``, watched by the clock of the one who waits, is a dead process's and is
  taken over, again by a conditional write, so that of two who try one succeeds.
- A process that could not renew its lease in time (it was stopped, the network was away) finds out before it commits
  anything more, and fails: the lease may be another's by then.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from fwd2bot_index.errors import IndexBusyError, IndexWriteError, ObjectStoreError
from fwd2bot_index.object_stores import (
    ABSENT,
    Condition,
    ConditionError,
    Location,
    Objects,
    is_uri,
    lance_options,
    problem_of,
    seconds_to_wait,
)

if sys.platform != "win32":
    import fcntl

MANIFEST: Final = "manifest.json"
LOCK: Final = ".lock"
LEASE_SECONDS: Final = 30.0
RENEW_SECONDS: Final = 5.0
_MAX_LOCK: Final = 4096

Mark: TypeAlias = tuple[Any, ...]


class Place(ABC):
    """Names are those in the index: ``manifest.json``, ``images.lance``."""

    folder: Path | None = None
    """None: it is no local folder."""

    @staticmethod
    def of(path: str | os.PathLike[str] | Place) -> Place:
        """
        Raises:
            InputError: a URI of no store that is known.
        """
        if isinstance(path, Place):
            return path
        return StorePlace(Location.of(os.fspath(path))) if is_uri(path) else FolderPlace(Path(os.path.abspath(path)))

    def table(self, name: str) -> str:
        """What Lance calls a table in the index."""
        return f"{self}/{name}"

    @property
    def table_options(self) -> dict[str, str]:
        """What Lance is to know besides."""
        return {}

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def read(self, name: str, *, max_bytes: int) -> bytes:
        """
        Raises:
            FileNotFoundError: it is not there.
            OSError, ObjectStoreError: it cannot be read.
            ValueError: it has more bytes than that; none was read.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Either the old content or the new, whole, even after a power cut.

        Raises:
            OSError, ObjectStoreError: it could not be written; what was there still is.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """A file, or a table with all in it, if it is there.

        Raises:
            OSError, ObjectStoreError: it could not be deleted.
        """

    @abstractmethod
    def mark(self, name: str) -> Mark:
        """Something that is different as soon as the file is another.

        Raises:
            FileNotFoundError: it is not there.
            OSError, ObjectStoreError: it cannot be said.
        """

    @abstractmethod
    def size(self, name: str = "") -> int:
        """Bytes in a table, or in all."""

    @abstractmethod
    def names(self) -> set[str]:
        """What there is; nothing where the place itself is not there yet.

        Raises:
            IndexWriteError: it is none that could hold an index.
            ObjectStoreError: it cannot be said.
        """

    @abstractmethod
    def holds_data(self, table: str) -> bool:
        """Whether anything was ever written to a table."""

    @abstractmethod
    def check_writable(self) -> None:
        """
        Raises:
            IndexWriteError: nothing can be written to it.
        """

    @abstractmethod
    def prepare(self) -> bool:
        """Make what must be there before anything can be written; whether it was there already."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed processes left of files that they wrote. Only for who holds :meth:`writing`."""

    @abstractmethod
    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write; what had to be made for it is left only if it is used.

        Raises:
            IndexBusyError: another process holds it.
            IndexWriteError, ObjectStoreError: it cannot be had.
        """

    @abstractmethod
    def is_being_written(self) -> bool:
        """Whether somebody holds :meth:`writing` right now. (Windows: never.)"""

    def problem_of(self, error: BaseException) -> str | None:
        """Why it could not be reached, by what Lance says; None: that was not it."""
        return None

    def check_held(self) -> None:  # noqa: B027 (the lock of a folder cannot be lost)
        """See that the right to write, if this process has taken it, is still its own.

        Raises:
            IndexBusyError: it may be another's by now.
        """

    def has(self, name: str) -> bool:
        """
        Raises:
            ObjectStoreError: it cannot be said.
        """
        try:
            self.mark(name)
        except OSError:
            return False
        return True


class FolderPlace(Place):
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        with open(self.folder / name, "rb") as f:
            if (size := os.fstat(f.fileno()).st_size) > max_bytes:
                raise ValueError(f"it has {size} bytes; the limit is {max_bytes}")
            return f.read(size)  # asking for more would take the memory for it

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content)

    def delete(self, name: str) -> None:
        if (self.folder / name).is_dir():
            shutil.rmtree(self.folder / name)
        else:
            (self.folder / name).unlink(missing_ok=True)

    def mark(self, name: str) -> Mark:
        status = (self.folder / name).stat()
        return status.st_ino, status.st_mtime_ns

    def size(self, name: str = "") -> int:
        return sum(os.path.getsize(p) for p in (self.folder / name).rglob("*") if p.is_file())

    def names(self) -> set[str]:
        try:
            return {entry.name for entry in self.folder.iterdir()} if self.folder.exists() else set()
        except OSError as e:
            raise IndexWriteError(f"The index cannot be written to {self.folder}: {e.strerror or e}.") from e

    def holds_data(self, table: str) -> bool:
        return any(True for _ in (self.folder / table).glob("data/*"))

    def check_writable(self) -> None:
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if not os.access(existing, os.W_OK):
            raise IndexWriteError(f"The index cannot be written to {self.folder}: {existing} is read-only.")

    def prepare(self) -> bool:
        existed = self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        return existed

    def sweep(self) -> None:
        for path in self.folder.glob("*.tmp"):
            path.unlink()

    @contextmanager
    def writing(self) -> Iterator[None]:
        existed = self.folder.exists()
        try:
            self.prepare()
            lock = open(self.folder / LOCK, "wb")  # noqa: SIM115
        except OSError as e:
            raise IndexWriteError(f"The index in {self} could not be written: {e.strerror or e}.") from e
        with lock:
            try:
                if sys.platform != "win32":
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        existed = True
                        raise _busy(self) from None
                yield
            finally:
                if not existed and not (self.folder / MANIFEST).exists():
                    with suppress(OSError):
                        (self.folder / LOCK).unlink()
                        self.folder.rmdir()

    def is_being_written(self) -> bool:
        if sys.platform == "win32":
            return False
        try:
            with open(self.folder / LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class StorePlace(Place):
    """A prefix in an object store."""

    def __init__(self, location: Location) -> None:
        self._objects = Objects(location)
        self._location = location

    def __str__(self) -> str:
        return str(self._location)

    @property
    def table_options(self) -> dict[str, str]:
        return lance_options()

    def read(self, name: str, *, max_bytes: int) -> bytes:
        return self._objects.read(name, max_bytes=max_bytes)

    def write(self, name: str, content: bytes) -> None:
        self._objects.write(name, content)

    def delete(self, name: str) -> None:
        if name.endswith(".lance"):
            self._objects.delete_below(name)
        else:
            self._objects.delete(name)

    def mark(self, name: str) -> Mark:
        return tuple(self._objects.state(name))

    def size(self, name: str = "") -> int:
        return sum(found.size for found in self._objects.below(name))

    def names(self) -> set[str]:
        return self._objects.names()

    def holds_data(self, table: str) -> bool:
        return any(True for _ in self._objects.below(f"{table}/data"))

    def check_writable(self) -> None:
        """Taking the lease will tell."""

    def prepare(self) -> bool:
        return True

    def sweep(self) -> None:
        """An object is written whole or not at all."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        # with little patience: there must be time to try again before the lease ends
        patience = min(max(1.0, LEASE_SECONDS / 6), seconds_to_wait())
        lease = _Lease(self, Objects(self._location, seconds=patience))
        lease.take()
        _leases[str(self)] = lease
        try:
            yield
        finally:
            del _leases[str(self)]
            lease.give_back()

    def is_being_written(self) -> bool:
        try:
            changed = self._objects.stat(LOCK).mtime_ns
        except (FileNotFoundError, ObjectStoreError):
            return False
        return time.time() - changed / 1e9 < 2 * LEASE_SECONDS  # of two clocks, so roughly

    def problem_of(self, error: BaseException) -> str | None:
        return problem_of(error, self._location)

    def check_held(self) -> None:
        if (lease := _leases.get(str(self))) is not None:
            lease.check()


class _Lease:
    """See the module. Renewed by a thread of its own."""

    def __init__(self, place: StorePlace, objects: Objects) -> None:
        self._place = place
        self._objects = objects
        self._owner = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        self._state: Condition = ABSENT
        self._renewals = 0
        self._renewed = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self) -> None:
        """
        Raises:
            IndexBusyError: it is another's, who is alive.
        """
        seen: Condition | None = None
        since = time.monotonic()
        while not self._write(ABSENT if seen is None else seen):
            while True:
                try:
                    now = self._objects.state(LOCK)
                except FileNotFoundError:  # given back
                    seen = None
                    break
                if seen is not None and now != seen:
                    raise _busy(self._place, self._holder())
                if seen is None:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since >= LEASE_SECONDS:
                    break
                time.sleep(RENEW_SECONDS / 10)
        self._thread.start()

    def check(self) -> None:
        if self._lost or time.monotonic() - self._renewed > LEASE_SECONDS:
            raise IndexBusyError(
                f"The right to write to the index in {self._place} could not be renewed for {LEASE_SECONDS:g} s, and "
                "another process may have it by now: what was committed is in the index; try again."
            )

    def give_back(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost:
            return
        with suppress(ObjectStoreError, FileNotFoundError):
            if self._objects.state(LOCK) == self._state:
                self._objects.delete(LOCK)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._lost = not self._write(self._state)
            except ObjectStoreError:
                continue  # `check` knows since when
            except FileNotFoundError:
                self._lost = True
            if self._lost:
                return

    def _write(self, only_if: Condition) -> bool:
        """Whether it is ours now, which is so also where the answer to a write was lost and it was tried again."""
        self._renewals += 1  # some stores know contents by their hash only
        before = time.monotonic()
        content = json.dumps({"owner": self._owner, "renewals": self._renewals}).encode()
        try:
            self._state = self._objects.write(LOCK, content, only_if=only_if)
        except ConditionError:
            try:
                state, now = self._objects.state(LOCK), self._read()
            except FileNotFoundError:
                return False
            if now.get("owner") != self._owner:
                return False
            self._state = state  # of an earlier attempt
        self._renewed = before
        return True

    def _holder(self) -> str:
        return " ".join(str(self._read().get("owner", "")).split()[:2])

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._objects.read(LOCK, max_bytes=_MAX_LOCK))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


_leases: dict[str, _Lease] = {}


def _busy(place: Place, holder: str = "") -> IndexBusyError:
    who = f" ({holder})" if holder else ""
    return IndexBusyError(f"Another process{who} is writing to the index in {place}: let it finish, then try again.")


def write_atomically(path: Path, content: bytes) -> None:
    """Either the old content or the new, whole, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

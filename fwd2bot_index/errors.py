"""Every error that a user can meet, in one tree.

::

    Fwd2BotError            one clear sentence: what is wrong, with its name, and what to do
    ├── ModelError          a model that cannot be found, loaded, or compressed with
    │   └── UnsupportedFamilyError
    ├── IndexError_         an index that cannot be read or written
    │   ├── IndexNotFoundError
    │   ├── IndexCorruptedError
    │   ├── IndexMismatchError    made by another model, codec or format
    │   ├── IndexEmptyError
    │   └── IndexWriteError       read-only, disk full
    │       └── IndexBusyError    another process is writing to it
    ├── ObjectStoreError    s3://, gs:// or az:// that cannot be reached, or refuses
    ├── ImageError          one picture that cannot be used; ``reason`` is what the index records
    └── InputError          arguments that make no sense (a missing folder, an empty query)
        └── NothingToIndexError   no picture where pictures were looked for

The command line prints ``str(error)`` and exits with 1 (2 for :class:`InputError`); ``--debug`` shows the traceback.
"""

from __future__ import annotations


class Fwd2BotError(Exception):
    """Base of all errors raised on purpose by this package."""


class ModelError(Fwd2BotError):
    """A model that cannot be found, loaded, or compressed with."""


class UnsupportedFamilyError(ModelError):
    """A model family that the double pass cannot work with; the message says why."""


class IndexError_(Fwd2BotError):
    """An index that cannot be read or written."""


class IndexNotFoundError(IndexError_):
    """There is no index where one was looked for."""


class IndexCorruptedError(IndexError_):
    """The manifest or the data of an index cannot be trusted."""


class IndexMismatchError(IndexError_):
    """The index was made by another model, codec or format version."""


class IndexEmptyError(IndexError_):
    """The index holds no picture that could answer."""


class IndexWriteError(IndexError_):
    """The index could not be written; it is as it was before."""


class IndexBusyError(IndexWriteError):
    """Another process is writing to the index."""


class ObjectStoreError(Fwd2BotError):
    """An object store that cannot be reached, or refuses."""


class ImageError(Fwd2BotError):
    """One picture that cannot be used."""

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unreachable = unreachable
        """It is not the picture's fault: the store that it is in could not be reached."""


class InputError(Fwd2BotError):
    """Arguments that make no sense."""


class NothingToIndexError(InputError):
    """There is no picture where pictures were looked for."""

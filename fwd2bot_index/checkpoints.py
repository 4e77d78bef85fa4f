"""Where a model lives on disk, what kind it is, and its fingerprint: all that can be known without torch.

Notable choices:

- A hub model that is in the cache already is used as it is there, without asking the hub: start-up stays fast, and an
  index is not torn by an upstream change. ``hf download NAME`` fetches a newer one.
- Files above 64 MiB are hashed by their header and 64 evenly spaced blocks, so that the fingerprint of a 7B model costs
  a few milliseconds. It guards against mistakes, not against an adversary.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import ModelError

DEFAULT_MODEL = "default"
DEFAULT_MODEL_PATH = Path(__file__).parent / "default_model"
SUMMARY_TOKENS_FILE = "summary_tokens.safetensors"
BASE_FOLDER = "base"
ADAPTERS_FOLDER = "adapters"
_SECOND_PASS = "generate"
"""The adapter that the second pass alone has."""
_OF_SECOND_PASS = ("matching_prompt", "caption_prompt")
"""Settings that it alone has."""
_OF_PLACE = ("base_model", "base_revision")
"""Settings that say where the base is; what it is, its files say."""

_DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
# What decides the outputs, and nothing else that may lie beside it: who fetched a hub model decides what of the rest
# is in the cache.
_HASHED = (
    "*.safetensors",
    "adapter_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
_TOKENIZER = "tokenizer.json"
_OLD_TOKENIZERS = ("*.model", "vocab.json", "vocab.txt", "merges.txt")
"""Read only where there is no tokenizer.json."""
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_WHOLE_FILE_LIMIT = 64 * 2**20
_BLOCK = 64 * 2**10
_NUM_BLOCKS = 64


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model that was found: nothing of it is loaded yet."""

    name: str
    """As a person would type it after ``--model``."""
    revision: str | None
    """Commit of the hub repository; None for a folder."""
    folder: Path
    """The Fwd2Bot checkpoint, or the plain LVLM itself."""
    base_folder: Path
    """The base LVLM: inside ``folder``, the same as ``folder`` (training-free), or elsewhere."""
    config: CompressorConfig

    def fingerprint(self) -> str:
        """Hash of everything that decides what this model writes into an index; 32 hex digits.

        The number of tokens of a training-free model is part of it. The adapter and the prompts that the second pass
        alone has are not: it may be trained on, and the index stays.
        """
        return self._hash(second_pass=False)

    def full_fingerprint(self) -> str:
        """As :meth:`fingerprint`, and of what the second pass alone has as well: what decides the answers."""
        return self._hash(second_pass=True)

    def _hash(self, *, second_pass: bool) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.config.mode} {self.config.num_summary_tokens}\n".encode())
        if self.config.mode == "trained":
            # by value: a setting that came later, at its default, makes no other model of those from before
            said = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
            left_out = {f.name for f in fields(self.config) if said[f.name] == f.default}
            left_out |= set(_OF_PLACE)
            left_out |= set() if second_pass else set(_OF_SECOND_PASS)
            digest.update(json.dumps({n: v for n, v in said.items() if n not in left_out}, sort_keys=True).encode())
        for path, label in self._files(second_pass=second_pass):
            digest.update(f"{label} {path.stat().st_size}\n".encode())
            for block in _blocks(path):
                digest.update(block)
        return digest.hexdigest()

    def _files(self, *, second_pass: bool) -> Iterator[tuple[Path, str]]:
        """Files to hash, each with a label that does not depend on where the folder is."""
        folders = [("", self.folder)]
        if self.base_folder != self.folder:
            folders.append(("base/", self.base_folder))
        if self.config.adapters != "none":
            adapters = sorted(f for f in (self.folder / ADAPTERS_FOLDER).glob("*") if f.is_dir())
            folders += [(f"{f.name}/", f) for f in adapters if second_pass or f.name != _SECOND_PASS]
        own = self.folder / "config.json" if self.config.mode == "trained" else None
        for label, folder in folders:
            for path in _hashed(folder):
                if path != own:
                    yield path, label + path.name


def resolve(
    name_or_path: str | Path | None = None, *, revision: str | None = None, num_summary_tokens: int | None = None
) -> Checkpoint:
    """Find a model: None or ``default`` is the bundled one, then a folder, then a hub id (cached, or downloaded).

    A folder with ``summary_tokens.safetensors`` is a trained checkpoint; anything else is taken for a plain LVLM, used
    training-free. ``num_summary_tokens`` is the number of pooled tokens of a training-free model (default 16).

    Raises:
        ModelError: not found, no network, no safetensors, or a number of tokens for a model that fixed its own.
    """
    if name_or_path is None or str(name_or_path) == DEFAULT_MODEL:
        name, folder, revision = DEFAULT_MODEL, DEFAULT_MODEL_PATH, None
        if not (folder / "config.json").is_file():
            raise ModelError(
                "The bundled default model is missing from this installation; reinstall fwd2bot, "
                "or name a model (for example --model Qwen/Qwen3-VL-2B-Instruct)."
            )
    else:
        name = str(name_or_path)
        folder, revision = _locate(name, revision)
    if not (folder / SUMMARY_TOKENS_FILE).is_file():
        config = CompressorConfig.training_free(name, revision=revision)
        if num_summary_tokens is not None:
            config = replace(config, num_summary_tokens=num_summary_tokens)
        return Checkpoint(name=name, revision=revision, folder=folder, base_folder=folder, config=config)

    config = CompressorConfig.read(folder / "config.json")
    if num_summary_tokens not in (None, config.num_summary_tokens):
        raise ModelError(
            f"{name} was trained to write {config.num_summary_tokens} summary tokens; "
            "their number can be chosen only for a plain LVLM without Fwd2Bot training."
        )
    base_folder = folder / BASE_FOLDER
    if config.base_model != BASE_FOLDER:
        base_folder, _ = _locate(config.base_model, config.base_revision)
    elif not (base_folder / "config.json").is_file():
        raise ModelError(f"{name} is incomplete: its folder {BASE_FOLDER}/ with the base model is missing.")
    return Checkpoint(name=name, revision=revision, folder=folder, base_folder=base_folder, config=config)


def model_fingerprint(
    name_or_path: str | Path | None = None, *, revision: str | None = None, num_summary_tokens: int | None = None
) -> str:
    """The fingerprint that :class:`fwd2bot_index.model.Fwd2BotModel` would have, without loading it or importing
    torch."""
    return resolve(name_or_path, revision=revision, num_summary_tokens=num_summary_tokens).fingerprint()


def _hashed(folder: Path) -> list[Path]:
    tokenizer = [_TOKENIZER] if (folder / _TOKENIZER).is_file() else _OLD_TOKENIZERS
    return sorted({p for pattern in (*_HASHED, *tokenizer) for p in folder.glob(pattern) if p.is_file()})


def _locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model and, for one from the hub, its commit."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is a folder without config.json, so it holds no model.")
        _require_safetensors(folder, name)
        return folder, None
    if folder.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no model folder {name}; check the path.")
    snapshot = _snapshot(name, revision)
    return snapshot, snapshot.name


def _snapshot(name: str, revision: str | None) -> Path:
    """A hub model's folder in the cache; downloaded where it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    advice = "check the name and the network (HF_HUB_OFFLINE must not be set), or give the path of a model folder"
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if _is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as e:
        raise ModelError(f"There is no model {name!r}: neither a folder nor a valid hub id; {advice}.") from e
    try:
        downloaded = Path(snapshot_download(name, revision=revision, allow_patterns=list(_DOWNLOADED)))
    except GatedRepoError as e:
        raise ModelError(
            f"The hub model {name} is gated: accept its terms on its page, then run `hf auth login`."
        ) from e
    except RevisionNotFoundError as e:
        raise ModelError(f"The hub model {name} has no revision {revision!r}; check the name of the revision.") from e
    except (RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as e:  # every error of the network is an OSError
        raise ModelError(f"The model {name} is neither in the cache nor to be had from the hub; {advice}.") from e
    if (downloaded / "model.safetensors.index.json").is_file() and not _is_complete(downloaded):
        raise ModelError(f"The cached copy of {name} is incomplete; connect to the network and run this again.")
    _require_safetensors(downloaded, name)
    if not _is_complete(downloaded):
        raise ModelError(
            f"{name} has no tokenizer or no image processor, or its cached copy lacks them; connect to the network and "
            "run this again."
        )
    return downloaded


def _is_complete(folder: Path) -> bool:
    """Whether settings, tokenizer, processor and all shards are there: an interrupted download leaves a snapshot with
    holes, and other programs fetch parts of a model."""
    tokenizer = any(p.is_file() for name in (_TOKENIZER, *_OLD_TOKENIZERS) for p in folder.glob(name))
    processor = any((folder / name).is_file() for name in _PROCESSORS)
    if not ((folder / "config.json").is_file() and tokenizer and processor):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / shard).is_file() for shard in shards)


def _require_safetensors(folder: Path, name: str) -> None:
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} has no safetensors weights; other formats can run code when loaded, so they are not read."
        )


def _blocks(path: Path) -> Iterator[bytes]:
    """The whole of a small file; of a big one its first block (the header) and 64 blocks evenly spaced to the end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_LIMIT:
            while block := file.read(2**20):
                yield block
            return
        for i in range(_NUM_BLOCKS + 1):
            file.seek((size - _BLOCK) * i // _NUM_BLOCKS, os.SEEK_SET)
            yield file.read(_BLOCK)

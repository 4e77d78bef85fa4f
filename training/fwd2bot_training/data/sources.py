"""From a source's settings to the source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import DRAWN, SourceConfig
from fwd2bot_training.data.boxes import BoxSource
from fwd2bot_training.data.conversations import ConversationSource
from fwd2bot_training.data.example import Source
from fwd2bot_training.data.folder import open_folder
from fwd2bot_training.data.grids import GridSource
from fwd2bot_training.data.hub import HubSource
from fwd2bot_training.data.parquet import ParquetSource
from fwd2bot_training.data.paths import find_files, resolve
from fwd2bot_training.data.scenes import SceneSource
from fwd2bot_training.data.texts import Routing
from fwd2bot_training.data.webdataset import WebDatasetSource


def open_source(
    config: SourceConfig,
    *,
    root: Path | None,
    routing: Routing = Routing(),  # noqa: B008 - frozen
    bad_rows: Literal["stop", "skip"] = "stop",
) -> Source:
    """
    Args:
        root: where relative paths start.
        bad_rows: "stop": missing pictures and texts that show without reading every row are an error here.
    Raises:
        InputError: there is nothing at its path, or it cannot be read; names the file.
    """
    stop = bad_rows == "stop"
    if config.kind in DRAWN and config.split not in ("train", "val"):
        raise InputError(f"The source {config.name!r}: split is train or val, not {config.split!r}.")
    match config.kind:
        case "scenes":
            return SceneSource(
                name=config.name,
                size=config.size,
                partial_captions=config.partial_captions,
                relation_captions=config.relation_captions,
                hard_negatives=config.hard_negatives,
                twins=config.twins,
                favored=config.favored,
                counts=config.counts,
                relations=config.relations,
                alike=config.alike,
                curriculum_steps=config.curriculum_steps,
                held_out=config.split == "val",
            )
        case "grids":
            return GridSource(name=config.name, held_out=config.split == "val")
        case "boxes":
            return BoxSource(name=config.name, held_out=config.split == "val")
        case "parquet":
            return ParquetSource(config, find_files(config, root, suffixes={".parquet"}), routing)
        case "conversations":
            images = resolve(config, config.images, root) if config.images else None
            files = find_files(config, root, suffixes={".json", ".jsonl"})
            return ConversationSource(config, files, routing, images=images, stop=stop)
        case "webdataset":
            return WebDatasetSource(config, find_files(config, root, suffixes={".tar"}), routing, stop=stop)
        case "folder":
            return open_folder(config, resolve(config, config.path, root), routing, stop=stop)
        case "datasets":
            local = Path(config.path) if root is None else root / config.path
            return HubSource(config, str(local) if local.exists() else config.path, routing)
        case _:
            assert_never(config.kind)

"""A LanceDB user's table, embedded by the bundled model."""

from __future__ import annotations

from pathlib import Path

import lancedb
import numpy as np
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector
from PIL import Image

import fwd2bot_index.lancedb_embedding  # noqa: F401 - registers it
from fwd2bot_index.errors import InputError
from fwd2bot_index.scenes import render, sample_scene


def test_a_table_of_pictures_is_searched_by_words(tmp_path: Path) -> None:
    scenes = [sample_scene(np.random.default_rng(seed), max_objects=1) for seed in range(12)]
    paths = []
    for i, scene in enumerate(scenes):
        render(scene).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    (tmp_path / "bad.png").write_bytes(b"bad")
    embed = get_registry().get("fwd2bot").create()

    class Photo(LanceModel):
        path: str = embed.SourceField()
        vector: Vector(embed.ndims()) | None = embed.VectorField(default=None)  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path / "db").create_table("photos", schema=Photo)
    table.add([{"path": path} for path in paths])
    [first] = embed.compute_source_embeddings([paths[3]])
    [found] = table.search(first).metric("dot").limit(1).to_list()
    assert found["path"] == paths[3]
    thing = scenes[5].things[0]
    best = table.search(f"a {thing.size} {thing.color} {thing.shape}").metric("dot").limit(3).to_list()
    alike = {
        p
        for p, s in zip(paths, scenes, strict=True)
        if (s.things[0].color, s.things[0].shape) == (thing.color, thing.shape)
    }
    assert {row["path"] for row in best} & alike
    [picture] = embed.compute_query_embeddings(Path(paths[5]))
    np.testing.assert_allclose(picture, embed.compute_source_embeddings(paths[5])[0], atol=1e-5)
    [opened] = embed.compute_query_embeddings(Image.open(paths[5]))
    np.testing.assert_allclose(picture, opened, atol=1e-5)
    assert embed.compute_source_embeddings([str(tmp_path / "bad.png"), paths[0]])[0] is None
    with pytest.raises(InputError, match="empty"):
        embed.compute_query_embeddings(" ")

"""The same index, wherever the work is done: one device, several, a Ray cluster that the tests start."""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from fakes import FakeModel
from pictures import encoded, noise, plain, write
from ray_fakes import Light, decode_or_die

from fwd2bot_index import ray_engine
from fwd2bot_index.engines import DevicesEngine, EngineMaker
from fwd2bot_index.errors import Fwd2BotError, InputError, ModelError
from fwd2bot_index.indexing import Progress, index_images
from fwd2bot_index.ray_engine import RayEngine
from fwd2bot_index.store import IndexStore
from fwd2bot_index.types import Compressor, ImageInput, IndexReport, ModelIdentity, SummaryTokens
from fwd2bot_index.verifying import verify

IDENTITY = ModelIdentity(name="fake", revision=None, fingerprint="fake-1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `connect` does
        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}},
        )
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 pictures of different sizes, three of them twice, one that is none, and one that claims 500 megapixels."""
    folder = tmp_path / "photos"
    files = {f"{i:02}.png": encoded(noise((10 + i, 12), seed=i), "PNG") for i in range(24)}
    files |= {f"copy-{i}.png": files[f"{i:02}.png"] for i in (3, 17, 22)}
    header = struct.pack(">IIBBBBB", 25_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    huge = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return write(folder, {**files, "broken.png": b"no picture", "huge.png": b"\x89PNG\r\n\x1a\n" + huge})


def run(
    photos: Path,
    index: Path,
    engine: EngineMaker | None,
    progress: Callable[[Progress], None] | None = None,
    model: Callable[[], object] = FakeModel,
) -> IndexReport:
    return index_images(
        [photos],
        index,
        model,  # type: ignore[arg-type]
        model_identity=IDENTITY,
        codec="pq8",
        batch_size=4,
        workers=1,
        commit_seconds=0,
        engine=engine,
        progress=progress,
    )


def contents(index: Path) -> tuple[list[dict[str, object]], dict[str, bytes]]:
    """Every row, and the payload of every picture, byte for byte."""
    store = IndexStore.open(index)
    assert verify(store).whole
    rows = [
        row
        for fragment in store.image_fragments(["uri", "id", "size", "width", "height", "status", "error", "embedding"])
        for batch in fragment.batches()
        for row in batch.to_pylist()
    ]
    return sorted(rows, key=lambda row: str(row["uri"])), contents_of_tokens(store)


def contents_of_tokens(store: IndexStore) -> dict[str, bytes]:
    return {
        id_: payload
        for fragment in store.token_fragments(["id", "payload"])
        for batch in fragment.batches()
        for id_, payload in zip(batch.column("id").to_pylist(), batch.column("payload").to_pylist(), strict=True)
    }


def on_ray(load: Callable[[], object] = Light, identity: ModelIdentity = IDENTITY) -> EngineMaker:
    return partial(RayEngine, load, identity, address=None)  # type: ignore[arg-type]


def on_devices(*models: Compressor) -> EngineMaker:
    return partial(DevicesEngine, [partial(lambda model: model, model) for model in models])


def test_several_devices_write_the_same(photos: Path, tmp_path: Path) -> None:
    models = [FakeModel(), FakeModel(), FakeModel()]
    ours = run(photos, tmp_path / "devices", on_devices(*models))
    theirs = run(photos, tmp_path / "one", None)
    assert (ours.added, len(ours.skipped)) == (theirs.added, len(theirs.skipped)) == (27, 2)
    assert contents(tmp_path / "devices") == contents(tmp_path / "one")
    assert [model.compressed for model in models] == [8, 8, 8]


def test_a_device_that_fails_on_a_picture(photos: Path, tmp_path: Path) -> None:
    class Fails(FakeModel):
        def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
            found = super().compress(images)
            if any(image.width == 25 for image in images):  # type: ignore[union-attr]
                found.tokens[:] = torch.nan
            return found

    report = run(photos, tmp_path / "index", on_devices(Fails(), Fails()))
    reasons = {Path(file.uri).name: file.reason for file in report.skipped}
    assert reasons["15.png"] == "the model could not compress it: its summary tokens are not finite"
    assert (report.added, set(reasons)) == (26, {"15.png", "broken.png", "huge.png"})


@pytest.mark.usefixtures("cluster")
class TestRay:
    def test_it_writes_the_same(self, photos: Path, tmp_path: Path) -> None:
        ours = run(photos, tmp_path / "ray", on_ray())
        theirs = run(photos, tmp_path / "one", None, model=Light)
        assert (ours.added, ours.skipped) == (theirs.added, theirs.skipped)
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")
        assert any("25000 x 20000 pixels" in file.reason for file in ours.skipped)
        again = run(photos, tmp_path / "ray", on_ray())
        assert (again.added, again.unchanged) == (0, 27)

    def test_an_actor_that_is_killed(self, photos: Path, tmp_path: Path) -> None:
        """Its batch is done by the next."""
        once = tmp_path / "killed"
        report = run(photos, tmp_path / "ray", on_ray(partial(Light, deadly=25, once=once)))
        assert once.exists()
        assert (report.added, len(report.skipped)) == (27, 2)
        run(photos, tmp_path / "one", None, model=Light)
        assert contents(tmp_path / "ray") == contents(tmp_path / "one")

    def test_a_picture_that_kills_every_actor(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_engine, "ATTEMPTS", 2)
        report = run(photos, tmp_path / "ray", on_ray(partial(Light, deadly=25)))
        [guilty] = [file for file in report.skipped if file.uri.endswith("15.png")]
        assert "the process that compressed it died" in guilty.reason
        assert report.added == 26

    def test_a_file_that_kills_its_task(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_engine, "ATTEMPTS", 1)
        monkeypatch.setattr(ray_engine, "decode", decode_or_die)
        write(photos, {"killer.png": plain((1, 2, 3))})
        report = run(photos, tmp_path / "ray", on_ray())
        [guilty] = [file for file in report.skipped if file.uri.endswith("killer.png")]
        assert "it could not be decoded on the cluster" in guilty.reason
        assert report.added == 27

    def test_ctrl_c(self, photos: Path, tmp_path: Path) -> None:
        def interrupt(progress: Progress) -> None:
            if progress.phase == "compressing" and progress.done >= 12:
                raise KeyboardInterrupt

        report = run(photos, tmp_path / "ray", on_ray(), interrupt)
        assert report.interrupted
        kept = IndexStore.open(tmp_path / "ray").stats().files
        assert 8 <= kept < 27
        report = run(photos, tmp_path / "ray", on_ray())
        assert (report.added, report.unchanged) == (27 - kept, kept)

    def test_another_version_of_the_package(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_engine, "version", lambda _: "9.9")
        with pytest.raises(Fwd2BotError, match=r"cluster has fwd2bot .*, and this is 9\.9"):
            run(photos, tmp_path / "ray", on_ray())
        assert not (tmp_path / "ray").exists()

    def test_another_model(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="other weights or settings"):
            run(photos, tmp_path / "ray", on_ray(partial(Light, fingerprint="fake-2")))

    def test_a_model_that_cannot_be_loaded(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"could not be loaded on the cluster: .*nothing"):
            run(photos, tmp_path / "ray", on_ray(partial(Light, nothing=1)))  # type: ignore[call-arg]


def test_a_cluster_that_does_not_answer() -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(InputError, match=f"No Ray cluster answers at {address}"):
            ray_engine.connect(address, processors=1)


def test_without_ray(monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'fwd2bot\[ray\]'"):
        run(photos, tmp_path / "ray", on_ray())


def test_payloads_and_tokens_may_come_together(photos: Path, tmp_path: Path) -> None:
    """As they do where a codec is fitted while batches are under way."""
    run(photos, tmp_path / "index", None)
    store = IndexStore.open(tmp_path / "index")
    ids = sorted(contents(tmp_path / "index")[1])[:4]
    tokens = store.tokens(ids)
    payload = store.codec.encode(tokens)
    mixed = {f"{i:032x}": payload[i] if i % 2 else tokens[i] for i in range(4)}
    store.commit([], mixed)
    written = contents_of_tokens(store)
    assert [written[id_] for id_ in mixed] == [row.tobytes() for row in payload]

"""Where the time of indexing goes, stage by stage: what ``fwd2bot bench index`` measures.

The pictures are indexed afresh into a temporary folder, on the way that ``fwd2bot index`` takes, by a model that is
loaded already and has seen one batch. Beside it, in the same run and with the same model:

- *the model alone*: the first pass over the same pictures, decoded beforehand, in batches of the same size: what the
  wall time of indexing should come close to;
- *a plain loop*: one picture after another is opened by Pillow, goes through the checkpoint's own processor with a
  prompt, and through the base's forward, as a first try with ``transformers`` would have it;
- *one decoder*: the same files decoded one after another, with nothing else to do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from fwd2bot_index.archives import split_uri
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_index.indexing import Progress, default_workers, index_images
from fwd2bot_index.listing import list_files
from fwd2bot_index.timing import listening

if TYPE_CHECKING:
    import torch

    from fwd2bot_index.model import Fwd2BotModel

STAGES: Final = ("decode", "preprocess", "vision", "llm", "codec", "write", "other")
"""*decode* is the time that the model waits for the decoders; *llm* the LLM's part of the first pass."""


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """Of one run. Times are wall time of the process that runs the model."""

    pictures: int
    skipped: int
    seconds: float
    stages: dict[str, float]
    """Seconds by ``STAGES``; they add up to ``seconds``."""
    slowest: str
    slowest_share: float
    model_seconds: float
    """The model alone, over as many pictures."""
    plain_seconds: float
    """The plain loop, over as many pictures."""
    decoder_seconds: float
    """One decoder alone, over as many pictures."""
    workers: int
    device: str
    dtype: str

    @property
    def over_model(self) -> float:
        """Times the model's own time."""
        return self.seconds / self.model_seconds

    @property
    def over_plain(self) -> float:
        """Times as fast as the plain loop."""
        return self.plain_seconds / self.seconds


def measure_stages(
    paths: Sequence[Path],
    model: Fwd2BotModel,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    codec: str = DEFAULT_CODEC,
    progress: Callable[[Progress], None] | None = None,
) -> StageFigures:
    """Index ``paths`` and measure.

    Args:
        limit: so many of the files at most, spread evenly over all that are found.
        batch_size, workers, codec, progress: as for :func:`fwd2bot_index.indexing.index_images`.

    Raises:
        InputError: no picture is found or can be used.
    """
    uris = sorted(list_files(paths).uris)
    to_index: Sequence[Path | str] = paths
    if limit is not None and len(uris) > limit:
        files = [uri for uri in uris if split_uri(uri) is None]  # a member is indexed with its archive only
        to_index = uris = [files[i * len(files) // limit] for i in range(min(limit, len(files)))]
    side = model.decode_side
    decoder_seconds, pictures, usable = _decoded(uris, side)
    if not pictures:
        raise InputError("There is no picture to index.")
    workers = workers or default_workers()
    synchronise = _synchroniser(model.device)
    _compress_all(model, pictures[:batch_size], batch_size)
    model_seconds = _seconds(lambda: _compress_all(model, pictures, batch_size), synchronise)
    plain_seconds = _seconds(lambda: _plain_loop(model, usable), synchronise)
    with tempfile.TemporaryDirectory() as folder, listening(synchronise) as clock:
        started = time.perf_counter()
        report = index_images(
            to_index,
            Path(folder) / "index",
            model,
            codec=codec,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        seconds = time.perf_counter() - started
    if report.interrupted:
        raise KeyboardInterrupt
    stages = {stage: float(clock.seconds[stage]) for stage in STAGES}
    slowest = max(stages, key=lambda stage: stages[stage])
    return StageFigures(
        pictures=report.added,
        skipped=len(report.skipped),
        seconds=seconds,
        stages=stages,
        slowest=slowest,
        slowest_share=stages[slowest] / seconds,
        model_seconds=model_seconds,
        plain_seconds=plain_seconds,
        decoder_seconds=decoder_seconds,
        workers=workers,
        device=str(model.device),
        dtype=str(model.base.dtype).removeprefix("torch."),
    )


def _decoded(uris: Sequence[str], side: int) -> tuple[float, list[Image.Image], list[str]]:
    """Seconds of one decoder, the pictures, and the files that they are in; what cannot be used is left out."""
    pictures, usable = [], []
    started = time.perf_counter()
    for uri in uris:
        try:
            pictures.append(decode_image(read_file(uri), max_side=side).image)
        except ImageError:
            continue
        usable.append(uri)
    return time.perf_counter() - started, pictures, usable


def _compress_all(model: Fwd2BotModel, pictures: Sequence[Image.Image], batch_size: int) -> None:
    with model.merged("compress"):
        for start in range(0, len(pictures), batch_size):
            model.compress(pictures[start : start + batch_size])


def _plain_loop(model: Fwd2BotModel, uris: Sequence[str]) -> None:
    """What a user would write around ``AutoProcessor`` and ``AutoModelForImageTextToText``."""
    import torch

    family, processor, base = model.family, model.processor, model.base
    settings = family.settings_for(processor.image_processor)
    prompt = _prompt(model)
    with torch.inference_mode(), model.stage(None), torch.compiler.set_stance("force_eager"):
        for uri in uris:
            with Image.open(_file(uri)) as opened:
                picture = opened.convert("RGB")
            images: Any = [[picture]] if family.nested_images else [picture]
            inputs = processor(images=images, text=[prompt], return_tensors="pt", images_kwargs=settings)
            base(**inputs.to(model.device), output_hidden_states=True).hidden_states[-1].float().cpu()


def _prompt(model: Fwd2BotModel) -> str:
    processor, wanted = model.processor, model.config.compress_prompt
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": wanted}]
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    assert model.family.plain_prompt is not None
    return model.family.plain_prompt.format(prompt=wanted)


def _file(uri: str) -> Any:
    from io import BytesIO

    return BytesIO(read_file(uri))


def _synchroniser(device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], synchronise: Callable[[], None]) -> float:
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started

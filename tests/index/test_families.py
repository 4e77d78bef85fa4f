"""The descriptors: what is supported, what is refused and why, what each picture turns into."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import ModelError, UnsupportedFamilyError
from fwd2bot_index.families import FAMILIES, REFUSED, check_image_tokens, family_of
from fwd2bot_index.model import Fwd2BotModel


def test_names_are_those_of_transformers_and_each_has_one_fate() -> None:
    assert set(FAMILIES) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert not set(FAMILIES) & set(REFUSED)
    # the rest are refused too, by the list of what is supported
    assert len(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(FAMILIES)) > 10


@pytest.mark.parametrize("model_type", REFUSED)
def test_families_that_cannot_work_are_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(UnsupportedFamilyError, match=f"type {model_type} cannot be used: it"):
        family_of(SimpleNamespace(model_type=model_type))


def test_an_unknown_family_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFamilyError, match=r"type newthing are not supported; these are: gemma3, .*smolvlm"):
        family_of(SimpleNamespace(model_type="newthing"))
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedFamilyError, match="mllama cannot be used: it reads pictures through cross-"):
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")


def test_a_strip_is_not_blown_up_before_it_is_cropped() -> None:
    sizes = []

    class Crops:
        do_center_crop = True

        def __call__(self, images: list[Image.Image], **_: object) -> dict[str, torch.Tensor]:
            sizes.extend(i.size for i in images)
            return {"pixel_values": torch.zeros(len(images), 3, 32, 32)}

    base, _ = tiny_models.build("llava")
    pictures = [Image.new("RGB", size) for size in ((1344, 1), (3, 900), (160, 20), (161, 20))]
    family_of(base.config).process_images(SimpleNamespace(image_processor=Crops()), pictures, base.config)
    assert sizes == [(8, 1), (3, 24), (160, 20), (161, 20)]


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_one_view_per_picture_with_as_many_tokens_as_the_grid_says(name: str) -> None:
    """Large pictures too, which the tiling families would cut up; the base accepts the placeholders (it counts
    them)."""
    base, processor = tiny_models.build(name)
    model = Fwd2BotModel(base, processor, CompressorConfig.training_free("tiny"))
    batch = model.prepare_images(tiny_models.pictures(2, sizes=[(200, 100), (64, 64)]))
    extra = 1 if name == "llava_onevision" else 0
    counts = (batch.input_ids == base.config.image_token_id).sum(dim=1).tolist()
    assert counts == [h * w + extra for h, w in batch.grids]
    if not name.startswith("qwen"):
        assert batch.grids == [(4, 4), (4, 4)]
        assert batch.pixels["pixel_values"].numel() == 2 * 3 * batch.pixels["pixel_values"].shape[-1] ** 2
    else:
        assert batch.grids == [(4, 8), (4, 4)]  # at most 96 x 96 pixels of 16 x 16 pixels a token
    assert batch.attention_mask.sum(dim=1).tolist() == [
        batch.input_ids.shape[1] - (max(counts) - count) for count in counts
    ]


def test_native_resolution_is_limited_to_a_megapixel() -> None:
    base, processor = tiny_models.build("qwen3_vl")
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 10**9}
    family = family_of(base.config)
    _, grids = family.process_images(processor, tiny_models.pictures(1, sizes=[(1600, 1200)]), base.config)
    (height, width), cell = grids[0], 16
    assert 0.9 * 2**20 < height * width * cell**2 <= 2**20


def test_decoding_keeps_four_times_what_the_vision_encoder_sees() -> None:
    for name, side in (("llava", 4 * 32), ("gemma3", 4 * 64), ("qwen3_vl", 2048)):
        base, processor = tiny_models.build(name)
        model = Fwd2BotModel(base, processor, CompressorConfig.training_free("tiny"))
        assert model.decode_side == side
        assert model.inputs.picture(_png(tiny_models.pictures(1, sizes=[(2100, 30)])[0])).size[0] == side


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_surprising_layout_of_image_tokens_is_an_error() -> None:
    with pytest.raises(ModelError, match="577 tokens for a picture where 576 were expected"):
        check_image_tokens(FAMILIES["llava"], 577, (24, 24))
    base, processor = tiny_models.build("llava")
    processor.num_additional_image_tokens = 1  # as for a CLIP tower whose class token is kept
    with pytest.raises(ModelError, match="17 tokens for a picture where 16 were expected"):
        Fwd2BotModel(base, processor, CompressorConfig.training_free("tiny"))


def test_qwen_positions_of_the_first_pass_are_two_dimensional() -> None:
    """M-RoPE stays the family's own: image tokens get rows and columns, summary positions follow on."""
    base, processor = tiny_models.build("qwen3_vl")
    config = CompressorConfig(num_summary_tokens=3, adapters="none")
    model = Fwd2BotModel.from_base(base, processor, config, lora=None)
    seen: list[torch.Tensor] = []
    hook = base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    batch = model.prepare_images(tiny_models.pictures(1, sizes=[(64, 64)]))
    model.first_pass(batch)
    hook.remove()
    image = batch.input_ids[0] == base.config.image_token_id
    _, rows, columns = seen[0][:, 0, :-3][:, image] - seen[0][0, 0, :-3][image].min()
    assert rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert columns.tolist() == [0, 1, 2, 3] * 4
    last = seen[0][:, 0, -4:]
    assert (last.diff(dim=-1) == 1).all()

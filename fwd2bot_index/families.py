"""Where the LVLM families differ, as data: one small descriptor each, found by the ``model_type`` of the base's config.

Every family is used with *one view per picture*: the tokens are pooled to k anyway, so tiles would cost time and give
nothing that is kept, and one view keeps the image tokens a plain 2-D grid.

A family belongs here when its image features take the place of placeholder tokens in the sequence of a causal (or
prefix-causal) LLM. Those that cannot work are refused by name with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from fwd2bot_index.errors import ModelError, UnsupportedFamilyError

# Native-resolution processors allow pictures of many thousand tokens; about a thousand are plenty to be pooled to k.
_NATIVE_MAX_PIXELS = 1024 * 1024
_LONGEST_ASPECT = 8
"""Of what a processor that crops is given: more than any crop of a panorama takes in, in a few million pixels."""

Grid = tuple[int, int]
"""Rows and columns of the image tokens of one picture."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the double pass must know about one architecture."""

    model_type: str
    cell: Callable[[Any], float] | None = None
    """Side in pixels of the patch behind one image token, from the config; None: the processor reports the grid itself
    (``image_grid_thw``), as native-resolution families do."""
    language_model: str = "model.language_model"
    """Module path of the LLM (without its head) in the base."""
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the image processor that give one view per picture; a function computes one from the processor."""
    nested_images: bool = False
    """The image processor takes one list of pictures per text."""
    trailing_image_tokens: int = 0
    """Placeholders after the grid that hold no picture content."""
    tiles_always: bool = False
    """The processor adds a tile to the overview whatever its settings; the overview alone is used."""
    token_types: Literal["none", "image", "suffix"] = "none"
    """``image``: ``token_type_ids`` mark image positions, which attend to each other in both directions; ``suffix``:
    they mark what comes after the bidirectional prefix of image and prompt."""
    mrope: bool = False
    """Positions of image tokens are 2-D and computed by the model itself from ``mm_token_type_ids``."""
    first_position: int = 0
    plain_prompt: str | None = None
    """Prompt for checkpoints without a chat template; None: they cannot be used."""
    plain_text: str | None = None
    """The same without a picture."""

    def process_images(
        self, processor: Any, images: Sequence[Any], config: Any
    ) -> tuple[dict[str, torch.Tensor], list[Grid]]:
        """Pixel inputs of the base's vision part and the grid of every picture (RGB Pillow images)."""
        seen = [_without_ends(i, processor.image_processor) for i in images]
        pictures = [[i] for i in seen] if self.nested_images else seen
        settings = self.settings_for(processor.image_processor)
        inputs = dict(processor.image_processor(images=pictures, return_tensors="pt", **settings))
        if self.cell is None:
            merge = config.vision_config.spatial_merge_size
            grids = [(int(h) // merge, int(w) // merge) for _, h, w in inputs["image_grid_thw"].tolist()]
        else:
            height, width = inputs["pixel_values"].shape[-2:]
            side = self.cell(config)
            grids = [(int(height / side), int(width / side))] * len(images)
        if self.tiles_always:
            # The overview comes first. LLaVA-OneVision leaves pictures untiled where a text has several, which is what
            # a count other than one says.
            inputs["pixel_values"] = inputs["pixel_values"][:, :1]
            inputs["batch_num_images"] = torch.tensor([len(images) + 1])
        for unused in ("num_crops", "num_patches", "rows", "cols"):
            inputs.pop(unused, None)
        return inputs, grids

    def settings_for(self, image_processor: Any) -> dict[str, Any]:
        """What to call this image processor with; see ``image_settings``."""
        return {k: v(image_processor) if callable(v) else v for k, v in self.image_settings.items()}

    def decode_side(self, pixels: Mapping[str, torch.Tensor]) -> int:
        """The longest side in pixels that is worth decoding a picture to, given the inputs made of any one picture.

        Four times what the vision encoder sees, the shorter side then being twice of it
        (:func:`fwd2bot_index.decoding.decode_image`): a picture four times as long as wide loses nothing, and the
        resampling to the final size has enough to work on.
        """
        if self.cell is None:
            return 2 * math.isqrt(_NATIVE_MAX_PIXELS)
        return 4 * max(pixels["pixel_values"].shape[-2:])

    def num_image_tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1] + self.trailing_image_tokens


def _without_ends(image: Any, image_processor: Any) -> Any:
    """A strip without what the processor would crop away, which first makes its *shorter* side as long as the crop: of
    1344 x 1 pixels it would make 150 million."""
    shorter = min(image.size)
    if not getattr(image_processor, "do_center_crop", False) or max(image.size) <= _LONGEST_ASPECT * shorter:
        return image
    left, top = ((side - min(side, _LONGEST_ASPECT * shorter)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _patch(config: Any) -> float:
    size = config.vision_config.patch_size
    return size[0] if isinstance(size, list | tuple) else size


def _native_size(image_processor: Any) -> dict[str, int]:
    size = image_processor.size
    return {"shortest_edge": size["shortest_edge"], "longest_edge": min(size["longest_edge"], _NATIVE_MAX_PIXELS)}


def _one_tile(image_processor: Any) -> list[list[int]]:
    size = image_processor.size
    return [[size["height"], size["width"]]] if size["height"] else [[size["shortest_edge"]] * 2]


def _families() -> dict[str, Family]:
    qwen = partial(Family, mrope=True, image_settings={"size": _native_size})
    idefics = partial(
        Family,
        cell=lambda c: _patch(c) * c.scale_factor,
        language_model="model.text_model",
        image_settings={"do_image_splitting": False},
        nested_images=True,
    )
    known = [
        Family(
            model_type="llava",
            cell=_patch,
            plain_prompt="USER: <image>\n{prompt} ASSISTANT:",
            plain_text="USER: {prompt} ASSISTANT:",
        ),
        Family(
            model_type="llava_onevision",
            cell=_patch,
            image_settings={"image_grid_pinpoints": _one_tile},
            trailing_image_tokens=1,  # image_newline
            tiles_always=True,
        ),
        qwen(model_type="qwen2_vl"),
        qwen(model_type="qwen2_5_vl"),
        # Deepstack: features of inner vision layers are added to the first LLM layers in the first pass, as the family
        # does; training-free summary tokens are pooled from the main stream only.
        qwen(model_type="qwen3_vl"),
        idefics(model_type="idefics3"),
        idefics(model_type="smolvlm"),
        Family(
            model_type="internvl",
            cell=lambda c: _patch(c) / c.downsample_ratio,
            image_settings={"crop_to_patches": False},
        ),
        Family(
            model_type="paligemma",
            cell=_patch,
            token_types="suffix",
            first_position=1,
            plain_prompt="<image>{prompt}",  # its processor adds <bos> and the newline
            plain_text="<bos>{prompt}\n",
        ),
        Family(
            model_type="gemma3",
            cell=lambda c: c.vision_config.image_size / math.isqrt(c.mm_tokens_per_image),
            image_settings={"do_pan_and_scan": False},
            token_types="image",
        ),
    ]
    return {family.model_type: family for family in known}


FAMILIES: Mapping[str, Family] = _families()

_CROSS_ATTENTION = "it reads pictures through cross-attention, so its sequence has no place for summary tokens"
_QUERY_FORMER = "its query transformer already replaces the picture by a fixed number of tokens without a 2-D grid"
_ENCODER_DECODER = "its language model is an encoder-decoder, so there is no causal pass to leave summary tokens"
_NEEDS_TIMM = "its vision encoder needs the timm package, which fwd2bot does not install"

REFUSED: Mapping[str, str] = {
    "mllama": _CROSS_ATTENTION,
    "idefics": _CROSS_ATTENTION,
    "blip": _CROSS_ATTENTION,
    "blip-2": _QUERY_FORMER,
    "instructblip": _QUERY_FORMER,
    "idefics2": _QUERY_FORMER,
    "kosmos-2": _QUERY_FORMER,
    "florence2": _ENCODER_DECODER,
    "pix2struct": _CROSS_ATTENTION,
    "vision-encoder-decoder": _CROSS_ATTENTION,
    "fast_vlm": _NEEDS_TIMM,
    "gemma3n": _NEEDS_TIMM,
}


def family_of(config: Any) -> Family:
    """The descriptor for a base's config.

    Raises:
        UnsupportedFamilyError: a family that cannot work, or that nobody has checked.
    """
    model_type = getattr(config, "model_type", None)
    if family := FAMILIES.get(str(model_type)):
        return family
    if reason := REFUSED.get(str(model_type)):
        raise UnsupportedFamilyError(f"Models of type {model_type} cannot be used: {reason}.")
    raise UnsupportedFamilyError(
        f"Models of type {model_type} are not supported; these are: {', '.join(sorted(FAMILIES))}."
    )


def check_image_tokens(family: Family, found: int, grid: Grid) -> None:
    """Compare the placeholders that the processor itself put for one picture with the grid that the descriptor expects.

    Raises:
        ModelError: the checkpoint lays out its image tokens in a way that its family does not.
    """
    expected = family.num_image_tokens(grid)
    if found != expected:
        raise ModelError(
            f"This {family.model_type} checkpoint uses {found} tokens for a picture where {expected} were expected; "
            "its layout of image tokens is not supported."
        )

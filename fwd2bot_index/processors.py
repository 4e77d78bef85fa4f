"""Loading the processor that belongs to an LVLM, without its video part.

The video processors of Qwen, InternVL, SmolVLM and LLaVA-OneVision need torchvision, which would be a large dependency
for something that is never used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_processor(folder: Path, config: Any) -> Any:
    """The processor in ``folder`` of a model with this config (a Hugging Face one)."""
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    usual = PROCESSOR_MAPPING[type(config)]
    if "video_processor" not in usual.get_attributes():
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    return without_video(usual).from_pretrained(folder)


def without_video(processor_class: Any) -> Any:
    """The same processor class minus its video part.

    It keeps its name, because that is what gets saved and what ``AutoProcessor`` looks up.
    """

    def get_attributes(cls: Any, /) -> list[str]:
        return [name for name in processor_class.get_attributes() if name != "video_processor"]

    def from_args_and_dict(cls: Any, args: list[Any], processor_dict: dict[str, Any], /, **kwargs: Any) -> Any:
        without = {**processor_dict, "video_processor": None}
        return processor_class.from_args_and_dict.__func__(cls, args, without, **kwargs)

    def reduce(self: Any, /) -> tuple[Any, ...]:
        return _restore, (processor_class, self.__dict__)  # by name, pickle would find the class with the video part

    return type(
        processor_class.__name__,
        (processor_class,),
        {
            "__module__": processor_class.__module__,
            "get_attributes": classmethod(get_attributes),
            "from_args_and_dict": classmethod(from_args_and_dict),
            "__reduce__": reduce,
        },
    )


def _restore(processor_class: Any, state: dict[str, Any]) -> Any:
    cls = without_video(processor_class)
    processor = cls.__new__(cls)
    processor.__dict__.update(state)
    return processor

"""Turn a small base LVLM into a double-pass compressor.

    python -m fwd2bot_training.compress --base runs/base/model --data ../shared/data --out runs/compress --steps 800

The base is fine-tuned in full beside its two stage adapters (``--tune full``: better for a small base from scratch),
or left as it is (``--tune lora``: the paper's way, for pretrained bases). Run the same command again to resume. The
result, a checkpoint that ``--model`` takes, is in ``runs/compress/model``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.config import CompressorConfig, Queries
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import recipe
from fwd2bot_training.objectives import CompressObjective
from fwd2bot_training.trainer import Trainer


def build(base: Path, *, num_tokens: int, queries: Queries, embedding_dim: int, rank: int, tune: str) -> Fwd2BotModel:
    """The model with fresh queries, heads and adapters; exactly what ``tune`` names has ``requires_grad``."""
    llava = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    llava.requires_grad_(tune == "full")
    config = CompressorConfig(
        base_model="base",
        num_summary_tokens=num_tokens,
        queries=queries,
        text_prompt="{text}",
        embedding_dim=embedding_dim,
        adapters=True,
    )
    lora = LoraSettings(rank=rank, alpha=2 * rank)
    return Fwd2BotModel.from_base(llava, AutoProcessor.from_pretrained(base), config, lora=lora)


def export(model: Fwd2BotModel, folder: Path) -> None:
    """Write the checkpoint in bfloat16: half the bytes, and what inference on a GPU computes in anyway."""
    model.base.to(torch.bfloat16)
    model.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_training.compress", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--base", type=Path, required=True, help="folder of the small LLaVA of fwd2bot_training.pretrain"
    )
    recipe.add_arguments(parser, lr=5e-4, decay=0.5, seed=1)
    parser.add_argument("--num-tokens", type=int, default=16)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[4, 8, 16, 16], help="k' is drawn from these")
    parser.add_argument("--queries", choices=["constant", "region"], default="region")
    parser.add_argument("--embedding-dim", type=int, default=192)
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA of each stage; alpha is twice as much")
    parser.add_argument("--tune", choices=["full", "lora"], default="full")
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    model = build(
        args.base,
        num_tokens=args.num_tokens,
        queries=args.queries,
        embedding_dim=args.embedding_dim,
        rank=args.rank,
        tune=args.tune,
    )
    image_size = model.base.config.vision_config.image_size
    trainer = Trainer(
        CompressObjective(model, contrastive_weight=args.contrastive_weight, prefixes=args.prefixes, seed=args.seed),
        recipe.mixture_of(args, usual=recipe.MIXTURE, image_size=image_size),
        recipe.config_of(args),
        args.out,
        export=lambda: export(model, args.out / "model"),
    )
    return recipe.run(trainer)


if __name__ == "__main__":
    sys.exit(main())

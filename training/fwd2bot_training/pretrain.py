"""Train the base LVLM of the bundled model from scratch.

    python -m fwd2bot_training.pretrain --data ../shared/data --out runs/base --steps 3000

Run the same command again to resume; ``--steps`` may change as long as the decay has not begun. The result, a plain
Hugging Face LLaVA, is in ``runs/base/model``. With ``--init runs/base/model`` it goes on from there on another
schedule: that is the all-token control of the compressor, which is to be trained for as long (``compress --help``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fwd2bot_training import recipe, small_llava
from fwd2bot_training.objectives import PretrainObjective
from fwd2bot_training.trainer import Trainer

VISION_MIXTURE = {"scenes": 0.85, "flickr8k": 0.1, "cifar100": 0.05}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_training.pretrain", description=__doc__.splitlines()[0])
    recipe.add_arguments(parser, lr=1e-3, decay=0.3, seed=0)
    parser.add_argument("--init", type=Path, help="start from this small LLaVA instead of random weights")
    parser.add_argument("--vision-only", action="store_true", help="train the vision part alone, by the word loss")
    parser.add_argument("--word-weight", type=float, default=0.2)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    config = small_llava.SmallLlavaConfig()
    usual = VISION_MIXTURE if args.vision_only else recipe.MIXTURE
    mixture = recipe.mixture_of(args, usual=usual, image_size=config.image_size)
    model_folder = args.out / "model"
    known = next((f for f in (model_folder, args.init) if f and (f / "tokenizer.json").exists()), None)
    if known:
        tokenizer = AutoTokenizer.from_pretrained(known)
    else:
        texts = mixture.texts(np.random.default_rng(args.seed))
        tokenizer = small_llava.train_tokenizer(texts, vocab_size=config.vocab_size)
        tokenizer.save_pretrained(model_folder)
    base = small_llava.make_model(tokenizer, config)
    if args.init:
        base.load_state_dict(AutoModelForImageTextToText.from_pretrained(args.init).state_dict())
    if args.vision_only:
        base.model.language_model.requires_grad_(False)

    def export() -> None:
        base.save_pretrained(model_folder)
        small_llava.make_processor(tokenizer, config).save_pretrained(model_folder)

    trainer = Trainer(
        PretrainObjective(
            base,
            tokenizer,
            contrastive_weight=args.contrastive_weight,
            word_weight=args.word_weight,
            vision_only=args.vision_only,
        ),
        mixture,
        recipe.config_of(args),
        args.out,
        export=export,
    )
    return recipe.run(trainer)


if __name__ == "__main__":
    sys.exit(main())

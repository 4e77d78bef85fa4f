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

from fwd2bot_training import small_llava
from fwd2bot_training.data import DATASETS, Mixture, mixture_item
from fwd2bot_training.objectives import PretrainObjective
from fwd2bot_training.trainer import TrainConfig, Trainer

MIXTURE = {
    "scenes": 0.68,
    "flickr8k": 0.20,
    "visual7w": 0.03,
    "easy_vqa": 0.04,
    "cifar100": 0.03,
    "shapes": 0.01,
    "daquar": 0.01,
}

VISION_MIXTURE = {"scenes": 0.85, "flickr8k": 0.1, "cifar100": 0.05}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_training.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with flickr8k/, visual7w/, ... (scenes need none)")
    parser.add_argument(
        "--mixture",
        nargs="+",
        type=mixture_item,
        metavar="SOURCE=WEIGHT",
        help=f"what batches are drawn from; known: scenes, {', '.join(DATASETS)}",
    )
    parser.add_argument("--init", type=Path, help="start from this small LLaVA instead of random weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for the log, the state and the model")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon", help="what steps the hidden matrices")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="bfloat16 where `lscpu` shows avx512_bf16 or amx_bf16: twice as fast there, very slow elsewhere",
    )
    parser.add_argument("--decay", type=float, default=0.3, help="share of the steps with a falling learning rate")
    parser.add_argument("--curriculum-steps", type=int, default=0, help="scenes grow from one object to six over these")
    parser.add_argument("--vision-only", action="store_true", help="train the vision part alone, by the word loss")
    parser.add_argument("--word-weight", type=float, default=0.2)
    parser.add_argument("--contrastive-weight", type=float, default=0.2)
    parser.add_argument("--loader-workers", type=int, default=1, help="processes that draw batches; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    config = small_llava.SmallLlavaConfig()
    weights = dict(args.mixture or (VISION_MIXTURE if args.vision_only else MIXTURE))
    mixture = Mixture.from_weights(
        weights,
        data=args.data,
        image_size=config.image_size,
        seed=args.seed,
        batch_size=args.batch_size,
        curriculum_steps=args.curriculum_steps,
    )
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
        TrainConfig(
            steps=args.steps,
            lr=args.lr,
            optimizer=args.optimizer,
            precision=args.precision,
            decay=args.decay,
            loader_workers=args.loader_workers,
        ),
        args.out,
        export=export,
    )
    if trainer.resume():
        print(f"resumed at step {trainer.step}", file=sys.stderr)
    trainer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

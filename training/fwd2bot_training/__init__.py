"""Training of the double-pass compressor: data, losses, the packed passes, the trainer, two recipes.

Two hops: ``python -m fwd2bot_training.pretrain`` or ``... .compress`` -> `trainer.Trainer.run` -> `objectives`.
"""

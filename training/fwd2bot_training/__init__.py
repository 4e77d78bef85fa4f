"""Training of the double-pass compressor, from a recipe to a checkpoint.

Two hops: `runner.run_recipe`, which ``fwd2bot train`` calls, to `trainer.Trainer` to `objectives`. Settings are in
`config`, what is trained on in `data`.
"""

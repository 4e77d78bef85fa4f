"""Evaluation: every score of the model card and every figure of the README has a command in here."""

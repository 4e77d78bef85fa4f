"""Fwd2Bot models in other people's evaluation harnesses; nothing here is imported until it is asked for.

- :mod:`fwd2bot_eval.plugins.sentence_transformers`: a module for ``SentenceTransformer``.
- :mod:`fwd2bot_eval.plugins.mteb`: an encoder for mteb's tasks with pictures and texts.
- :mod:`fwd2bot_eval.plugins.lmms_eval`: a chat model for lmms-eval, which answers from summary tokens.

Each needs the package of its name: ``pip install 'fwd2bot[harness]'`` brings the first two. docs/plugins.md tells how
to use them.
"""

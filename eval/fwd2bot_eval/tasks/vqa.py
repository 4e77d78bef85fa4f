"""Questions about pictures: from the summary tokens, from all image tokens, blind, and from another picture.

- In the model's own words: :class:`VQAv2`, :class:`GQA`, :class:`POPE`, :class:`DAQUAR`, :class:`EasyVQA`,
  :class:`Shapes`.
- Multiple choice by likelihood: :class:`Visual7W`, :class:`MMBench`.
- True or false, by the matching question: :class:`NLVR`.

Notable choices:

- All columns of the subject side by side: what the summary tokens have over ``blind`` and ``other picture`` is sight;
  what they lack to ``uncompressed`` is the price of compression.
- Questions are asked as the bundled model's training tidies them; the subject's ``short_answer_suffix`` follows the
  open ones.
- All rows are read once before the first picture is: a malformed one is told before hours are spent.
- A tie of likelihoods is a loss.
"""

from __future__ import annotations

from fwd2bot_eval.tasks.vqa_json import GQA, POPE, VQAv2
from fwd2bot_eval.tasks.vqa_mmbench import MMBench
from fwd2bot_eval.tasks.vqa_parquet import DAQUAR, NLVR, EasyVQA, Shapes, Visual7W

__all__ = ["DAQUAR", "GQA", "NLVR", "POPE", "EasyVQA", "MMBench", "Shapes", "VQAv2", "Visual7W"]

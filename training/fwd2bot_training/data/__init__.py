"""What is trained on: rows of many kinds of files, and scenes drawn on the fly, as one stream of batches.

From a row to a batch: a `Source` makes an `Example` of a row (`sources.open_source` chooses its class), and a `Mixture`
draws rows, cuts and completes the examples, and hands out the batch of a step.
"""

from fwd2bot_training.data.example import CAPTION, DESCRIBE, NAME, WHOLE, Example, Region, Rng, Segment, Source
from fwd2bot_training.data.mixture import Mixture, Skipped
from fwd2bot_training.data.negatives import rule_negatives
from fwd2bot_training.data.preview import DataReport, SourceReport, inspect, write_preview
from fwd2bot_training.data.rows import RowSource
from fwd2bot_training.data.scenes import SceneSource
from fwd2bot_training.data.sources import open_source
from fwd2bot_training.data.texts import Routing, Texts

__all__ = [
    "CAPTION",
    "DESCRIBE",
    "NAME",
    "WHOLE",
    "DataReport",
    "Example",
    "Mixture",
    "Region",
    "Rng",
    "Routing",
    "RowSource",
    "SceneSource",
    "Segment",
    "Skipped",
    "Source",
    "SourceReport",
    "Texts",
    "inspect",
    "open_source",
    "rule_negatives",
    "write_preview",
]

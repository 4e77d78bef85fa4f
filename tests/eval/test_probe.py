import torch

from fwd2bot_eval.probe import object_features, probe
from fwd2bot_index.scenes import Scene, Thing


def test_an_object_is_read_from_the_cells_that_it_reaches_into() -> None:
    thing = Thing(shape="star", color="red", size="small", x=0.75, y=0.125, radius=0.1)  # columns 2-3, row 0 of 4 x 4
    tokens = torch.arange(16.0)[None, :, None]
    assert object_features(tokens, [Scene(things=(thing,), ground=0)]).tolist() == [[2.5]]


def test_what_is_linear_is_read_and_what_is_absent_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(800, 12, generator=generator)
    plain = ["yes" if x > 0 else "no" for x in features[:, 3].tolist()]
    coin = ["yes" if x > 0 else "no" for x in torch.randn(800, generator=generator).tolist()]
    assert probe(features, plain) > 0.93
    assert 0.38 < probe(features, coin) < 0.62

import torch

from dali.runtime.look_ahead import LookAhead
from dali.runtime.predict import GateShift
from runtime.tiny_runtime import HIDDEN, LAYERS, inputs, tiny_model


def test_several_layers_ahead_are_told_in_a_row():
    routers = tiny_model().routers
    ahead = LookAhead([GateShift(routers, distance) for distance in (1, 2, 3)])
    hidden = inputs(5, 0)
    assert hidden.shape[1] == HIDDEN
    for layer, count in ((0, 3), (1, 2), (2, 1)):
        target, ids = ahead.predict(layer, hidden)
        assert target == layer + 1
        expected = [routers[later](hidden)[2] for later in range(layer + 1, layer + 1 + count)]
        assert torch.equal(ids, torch.cat(expected))
    assert ahead.predict(LAYERS - 1, hidden) is None

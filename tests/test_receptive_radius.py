"""The claimed receptive radius is how far a pixel reaches: never less, or tiles show; not much more, or they crawl."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import photonstep as ps
from photonstep.models import network as networks
from photonstep.models.network import TIERS, NetworkConfig, receptive_radius_px
from photonstep.runtime.denoiser import NetworkInputs, Scene

CONFIGS = {
    **{
        name: replace(config, widths=(16,) * len(config.widths)) for name, config in TIERS.items()
    },  # how wide it is does not matter here
    "one level": NetworkConfig(widths=(16,)),
    "no unshuffle": NetworkConfig(widths=(16, 16), unshuffle=1),
    "deep": NetworkConfig(widths=(16, 16, 16, 16), unshuffle=1),
    "many blocks": NetworkConfig(widths=(16, 32), blocks=2),
}


def without_cancellation(config):
    """A network with positive weights only: no sum cancels and no ReLU closes, so all that is reachable shows."""
    network = networks.Denoiser(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 / parameter[0].numel() if parameter.ndim > 1 else 0.0)
    return network


def true_radius_px(config):
    """Largest distance along y at which an input still has a gradient, over the output pixels of a whole grid cell."""
    network = without_cancellation(config)
    cell = config.multiple
    side = 2 * (-(-receptive_radius_px(config) // cell) + 2) * cell
    radius = 0
    for y in range(side // 2, side // 2 + cell):
        planes = torch.ones(1, 4, side, cell, requires_grad=True)
        network(planes)[0, 0, y, 0].backward()
        rows = torch.nonzero(planes.grad.sum((0, 1, 3)))[:, 0]
        radius = max(radius, y - int(rows.min()), int(rows.max()) - y)
    return radius


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_claimed_radius_is_an_upper_bound_and_close(config, single_threaded_torch):
    claimed, true = receptive_radius_px(config), true_radius_px(config)
    assert true <= claimed <= true + config.multiple


@pytest.mark.parametrize("name", sorted(ps.shipped_bundles()))
def test_a_shipped_network_reaches_no_farther_than_its_manifest_says(name, confocal):
    """One pixel of a real frame jumps; what moves in the bundle's own ONNX network lies within the radius."""
    restorer = ps.load(name, backend="openvino", precision="fp32", threads=1)
    model = restorer.bundle.manifest.model
    side = -(-(2 * model.receptive_radius_px) // model.multiple + 2) * model.multiple
    grown = np.pad(confocal.raw, [(0, max(side - n, 0)) for n in confocal.raw.shape], mode="symmetric")[:side, :side]
    u = np.sqrt(grown.astype(np.float32)) / 16 - 0.5
    centre, outputs = side // 2 + 3, []
    for _ in range(2):
        inputs = NetworkInputs(restorer.bundle.manifest)(u, 0.05, Scene())
        outputs.append(restorer.choice.session.run(inputs)[0, 0].copy())
        u[centre, centre] += 3.0
    restorer.close()
    rows, columns = np.nonzero(outputs[0] != outputs[1])
    reach = max(np.abs(rows - centre).max(), np.abs(columns - centre).max())
    assert reach <= model.receptive_radius_px
    assert reach > model.receptive_radius_px / 4  # a network that looks at much less would not need such a halo

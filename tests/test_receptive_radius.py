"""The claimed receptive radius is how far a pixel reaches: never less (tiles would show), not much more (they'd be slow)."""

import numpy as np
import pytest

import photonstep as ps
from photonstep.kernels import ops
from photonstep.runtime.denoiser import Denoiser
from photonstep.runtime.tiling import pad_to_multiple

torch = pytest.importorskip("torch", reason="torch is not installed; it is in the extra 'test'")

from photonstep.models.network import (  # noqa: E402
    TIERS, Denoiser as Network, NetworkConfig, receptive_radius_px,
)  # fmt: skip

CONFIGS = {
    **TIERS,
    "one level": NetworkConfig(width=16, mults=(1,)),
    "no unshuffle": NetworkConfig(width=16, mults=(1, 1), unshuffle=1),
    "deep": NetworkConfig(width=16, mults=(1, 1, 1, 1), unshuffle=1),
    "many blocks": NetworkConfig(width=16, mults=(1, 2), blocks=2),
}


def positive(config):
    """A network in which nothing cancels and no ReLU closes, so that what is seen is what is reachable."""
    network = Network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 / max(parameter[0].numel(), 1) if parameter.ndim > 1 else 0.0)
    return network.double().eval()


def true_radius_px(config):
    """Largest distance along y or x from which an output pixel is reached, by the gradient, over a whole grid cell."""
    network = positive(config)
    claimed, cell = receptive_radius_px(config), config.multiple
    side = 2 * (-(-claimed // cell) + 2) * cell
    radius = 0
    for y in range(side // 2, side // 2 + cell):
        planes = torch.ones(1, 4, side, 2 * cell, dtype=torch.float64, requires_grad=True)
        network(planes)[0, 0, y, cell].backward()
        rows = torch.nonzero(planes.grad.abs().sum((0, 1, 3)))[:, 0]
        radius = max(radius, y - int(rows.min()), int(rows.max()) - y)
    return radius


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_claimed_radius_is_an_upper_bound_and_close(config):
    claimed, true = receptive_radius_px(config), true_radius_px(config)
    assert true <= claimed
    assert claimed <= true + 2 * config.multiple


@pytest.mark.parametrize("name", sorted(ps.shipped_bundles()))
def test_a_shipped_network_reaches_no_farther_than_its_manifest_says(name, confocal):
    """One pixel of a real frame is changed a lot; what moves in the bundle's own ONNX network lies within the radius."""
    restorer = ps.load(name, backend="openvino", precision="fp32", threads=1)
    model = restorer.bundle.manifest.model
    radius = model.receptive_radius_px
    side = -(-(2 * radius + 3 * model.multiple) // model.multiple) * model.multiple
    z = ops.stabilise(confocal.raw, offset_adu=3, gain_e_per_adu=0.25, readout_noise_e=0.5)
    u = pad_to_multiple(np.pad(z, [(0, max(side - n, 0)) for n in z.shape], mode="symmetric")[:side, :side], 1) / 20
    centre = side // 2 + 3
    outputs = []
    for push in (0.0, 3.0):
        pushed = np.ascontiguousarray(u)
        pushed[centre, centre] += push
        inputs, _ = Denoiser.network_inputs(restorer.bundle.manifest, pushed, 0.05, (0.0, 0.0))
        outputs.append(restorer.choice.session.run(inputs)[0, 0].copy())
    restorer.close()
    rows, columns = np.nonzero(outputs[0] != outputs[1])
    reach = max(np.abs(rows - centre).max(), np.abs(columns - centre).max())
    assert reach <= radius
    assert reach > radius / 4  # a network that looks at much less would not need such a halo

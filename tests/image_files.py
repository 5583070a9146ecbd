"""Image files that the tests write and copy."""

import numpy as np
import tifffile

from photonstep.runtime.images import ImageWriter, open_image

PROVENANCE = {
    "photonstep": "0.1.0",
    "bundle": {"name": "base", "sha256": "0" * 64},
    "plan": {"steps": 1},
}
SHAPE = (3, 2, 4, 40, 48)  # TCZYX


def random_stack():
    """A (3, 2, 4, 40, 48) TCZYX uint16 stack of random counts."""
    return np.random.default_rng(0).integers(90, 4000, SHAPE, dtype=np.uint16)


def write_ome(path, stack, axes="TCZYX", **options):
    metadata = {
        "axes": axes,
        "PhysicalSizeX": 108.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.109,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 0.5,
        "PhysicalSizeZUnit": "µm",
        "TimeIncrement": 2.5,
        "TimeIncrementUnit": "s",
        "Channel": {"Name": ["DAPI", "Zellkern µ"]},
        "Plane": {"DeltaT": [0.1 * n for n in range(24)]},
    }
    if "C" not in axes:
        del metadata["Channel"]
        del metadata["Plane"]
    tifffile.imwrite(path, stack, ome=True, photometric="minisblack", metadata=metadata, **options)


def copy(source, target, transform=lambda plane: plane, **options):
    with (
        open_image(source) as reader,
        ImageWriter(target, like=reader, **options) as writer,
    ):
        for _, plane in reader.planes():
            writer.write(transform(plane))
    return target

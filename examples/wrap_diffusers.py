"""A diffusers network becomes a bundle, and the runtime restores with it.

    python examples/wrap_diffusers.py [-o mine.photonstep]

The network here has random weights and spoils the frame; put yours in its place. Needs diffusers and the training side:
``python -m pip install 'photonstep[train]' diffusers``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.export.wrap import About, wrap
from photonstep.runtime.images import open_image


def main() -> None:
    parser = argparse.ArgumentParser(description="wrap a diffusers UNet2DModel")
    parser.add_argument("-o", "--output", type=Path, default=Path("wrapped.photonstep"))
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    unet = UNet2DModel(  # yours: UNet2DModel.from_pretrained(folder)
        in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)  # yours, with its own settings
    wrapped = wrap(
        unet, prediction="eps", conditioning="timestep", schedule=scheduler, data_range=(-1, 1),
        output=arguments.output, overwrite=arguments.overwrite, about=About(licence="MIT", authors=("me",)),
    )  # fmt: skip
    found = wrapped.findings
    print(f"wrote {wrapped.bundle}")
    print(f"{found.parameters} parameters, {found.kmac_per_px} kMAC/px, sides in multiples of {found.multiple} px")
    print(f"the runtime differs from torch by {wrapped.difference:.1e} of the largest output")
    for note in wrapped.notes:
        print(f"note: {note}")

    with open_image(DEMO_FRAME) as reader:
        (_, raw), *_ = reader.planes()
    result = ps.load(wrapped.bundle).restore(raw[:128, :128], steps=2)
    print(f"restored {result.image.shape} {result.image.dtype} in {result.latency_ms:.0f} ms")


if __name__ == "__main__":
    main()

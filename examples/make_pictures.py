"""Make the pictures of the README from real frames: raw | restored | ground truth, and one of K = 1, 2 and 4.

    python examples/make_pictures.py

Every frame is restored blind: its camera is estimated from the frame itself. PSNR and SSIM are FMD's protocol (8-bit
values as they are, data range 255). The frame of the demo ships with the package; the others lie in ``tests/data`` of
the source tree and are left out where that folder is absent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.demo_picture import Panel, draw_comparison
from photonstep.metrics import psnr, ssim
from photonstep.runtime.images import open_image

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_FRAMES = REPOSITORY / "tests" / "data"
DATA_RANGE = 255.0
STEPS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A real frame and its ground truth, the mean of 50 frames of the same field.

    Parameters
    ----------
    name : of the picture's file
    path : TIFF of two pages: raw, ground truth
    title : for the small print
    """

    name: str
    path: Path
    title: str

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(H, W) raw frame and (H, W) ground truth, uint8."""
        with open_image(self.path) as reader:
            raw, truth = (plane for _, plane in reader.planes())
        return raw, truth


FRAMES = (
    Frame(name="mouse_brain", path=DEMO_FRAME, title="Mouse brain, confocal"),
    Frame(name="actin", path=TEST_FRAMES / "confocal.tif", title="Actin of BPAE cells, confocal"),
    Frame(name="two_photon", path=TEST_FRAMES / "two_photon.tif", title="Actin of BPAE cells, two-photon"),
    Frame(name="widefield", path=TEST_FRAMES / "widefield.tif", title="Mitochondria of BPAE cells, widefield"),
)
STEPS_FRAME = "actin"
SOURCE = "FMD, Zhang et al., CVPR 2019 · single frame, camera estimated from itself · one linear grey scale"


def main() -> None:
    parser = argparse.ArgumentParser(description="make the README's pictures from real frames")
    parser.add_argument("--bundle", default="base", help="base, live or the path of a .photonstep file")
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "docs" / "images", help="folder")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    restorer = ps.load(arguments.bundle, precision="fp32")  # the same pixels whatever a timed run would choose
    for name, picture in pictures(restorer):
        path = arguments.output / f"{name}.png"
        # 256 greys and one accent colour as a palette: half the size, no grey value off by more than 1
        picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height} px, {path.stat().st_size / 1e3:.0f} kB")


def pictures(restorer: ps.Restorer) -> Iterator[tuple[str, Image.Image]]:
    """Yield (name, picture) for every frame that is here."""
    for frame in FRAMES:
        if not frame.path.exists():
            print(f"{frame.path}: not here, so no picture of it; run this in a source tree")
            continue
        yield frame.name, draw_restoration(frame, restorer)
        if frame.name == STEPS_FRAME:
            yield "steps", draw_steps(frame, restorer)


def draw_restoration(frame: Frame, restorer: ps.Restorer) -> Image.Image:
    """Raw | restored with K = 1 | ground truth."""
    raw, truth = frame.read()
    result = restorer.restore(raw)
    panels = [
        Panel(image=raw, title="Raw", numbers=scores(truth, raw)),
        Panel(image=result.image, title="Restored", numbers=scores(truth, result.image)),
        Panel(image=truth, title="Ground truth", numbers="mean of 50 frames"),
    ]
    return draw_comparison(panels, reference=truth, footer=small_print(frame, restorer, result))


def draw_steps(frame: Frame, restorer: ps.Restorer) -> Image.Image:
    """Restored with K = 1, 2 and 4 | ground truth."""
    raw, truth = frame.read()
    camera = ps.Camera.estimate(raw)
    results = [restorer.restore(raw, camera=camera, steps=steps) for steps in STEPS]
    panels = [Panel(image=r.image, title=f"K = {r.steps}", numbers=scores(truth, r.image)) for r in results]
    panels.append(Panel(image=truth, title="Ground truth", numbers="mean of 50 frames"))
    return draw_comparison(panels, reference=truth, footer=small_print(frame, restorer, results[0]))


def scores(truth: NDArray[Any], image: NDArray[Any]) -> str:
    return f"PSNR {psnr(truth, image, DATA_RANGE):.2f} dB   SSIM {ssim(truth, image, DATA_RANGE):.3f}"


def small_print(frame: Frame, restorer: ps.Restorer, result: ps.Result) -> tuple[str, str]:
    manifest = restorer.bundle.manifest
    along_y, along_x = result.camera.noise_correlation
    found = f"noise correlation {along_y:.2f} (y), {along_x:.2f} (x) · flags: {', '.join(result.flags) or 'none'}"
    return (
        f"{frame.title} · {SOURCE}",
        f"photonstep {ps.__version__} · bundle {manifest.name} {manifest.version} · {found}",
    )


if __name__ == "__main__":
    main()

"""``photonstep demo``: one real noisy frame, restored blind, judged against its ground truth, timed and drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from photonstep import __version__
from photonstep.demo_picture import Panel, draw_comparison
from photonstep.kernels import ops
from photonstep.latency import Latency, measure_latency
from photonstep.machine import cpu_model
from photonstep.metrics import psnr, ssim
from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import ImageError
from photonstep.runtime.images import open_image
from photonstep.runtime.pixel_integration import fine

DEMO_FRAME = Path(__file__).with_name("demo_data") / "demo.tif"
DEMO_SOURCE = "Mouse brain, confocal, 512 x 512 px, 8 bit · FMD, Zhang et al., CVPR 2019"
DATA_RANGE = 255.0
LATENCY_BUDGET_S, LATENCY_RUNS = 6.0, 100
# In the PNG's texts: tells a picture that the demo made, and may make anew, from one that is somebody's own.
PICTURE_KEY, PICTURE_VALUE = "Software", "photonstep demo"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found."""

    raw: npt.NDArray[Any]
    restored: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    pixel_size_um: float | None
    camera: Camera
    result: Any
    latency: Latency
    raw_psnr_db: float
    raw_ssim: float
    psnr_db: float
    ssim: float


def run_demo(restorer: Any) -> Demo:
    """Restore the shipped frame blind (its camera is estimated from itself) and measure quality and latency.

    Quality is FMD's protocol: 8-bit values as they are, data range 255. Super-resolution gets the frame binned 2x2, and
    is judged against the truth at full size.
    """
    scale = restorer.bundle.manifest.scale
    with open_image(DEMO_FRAME) as reader:
        raw, truth = (plane for _, plane in reader.planes())
        pixel_size_um = reader.pixel_size_um[1] if reader.pixel_size_um else None
    if scale > 1:
        raw = ops.block_means(raw.astype(np.float32), scale)
    result = restorer.restore(raw)
    latency = measure_latency(restorer, raw, camera=result.camera, budget_s=LATENCY_BUDGET_S, max_runs=LATENCY_RUNS)
    raw = fine(raw, scale)
    return Demo(
        raw=raw,
        restored=result.image,
        truth=truth,
        pixel_size_um=pixel_size_um,
        camera=result.camera,
        result=result,
        latency=latency,
        raw_psnr_db=psnr(truth, raw, DATA_RANGE),
        raw_ssim=ssim(truth, raw, DATA_RANGE),
        psnr_db=psnr(truth, result.image, DATA_RANGE),
        ssim=ssim(truth, result.image, DATA_RANGE),
    )


def draw_demo(demo: Demo, restorer: Any) -> Image.Image:
    """Return the demo's picture: raw | restored | ground truth, with a magnified detail and the numbers."""
    binned = "" if restorer.bundle.manifest.scale == 1 else ", binned 2x2"
    panels = [
        Panel(
            image=demo.raw, title=f"Raw{binned}", numbers=f"PSNR {demo.raw_psnr_db:.2f} dB   SSIM {demo.raw_ssim:.3f}"
        ),
        Panel(
            image=demo.restored,
            title="Restored",
            numbers=f"PSNR {demo.psnr_db:.2f} dB   SSIM {demo.ssim:.3f}   {demo.latency.p50_ms:.0f} ms",
        ),
        Panel(image=demo.truth, title="Ground truth", numbers="mean of 50 frames"),
    ]
    return draw_comparison(
        panels, reference=demo.truth, pixel_size_um=demo.pixel_size_um, footer=_footer(demo, restorer)
    )


def _footer(demo: Demo, restorer: Any) -> tuple[str, str]:
    manifest = restorer.bundle.manifest
    steps = f"{demo.result.steps} step{'s' if demo.result.steps != 1 else ''}"
    bundle = f"bundle {manifest.name} {manifest.version}"
    device = cpu_model() if restorer.device == "cpu" else restorer.device
    place = f"{restorer.backend_name} {restorer.precision} on {device}"
    return (
        f"{DEMO_SOURCE} · single frame, camera estimated from the frame itself · one linear grey scale for all panels",
        (
            f"photonstep {__version__} · {bundle} · {steps} · {place}, p50 / p99 = "
            f"{demo.latency.p50_ms:.1f} / {demo.latency.p99_ms:.1f} ms"
        ),
    )


def check_picture_path(path: Path, *, overwrite: bool) -> None:
    """Raise ImageError when the picture must not be written to ``path``; an earlier demo's picture may be replaced."""
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: the demo draws a PNG; expected a name ending in .png")
    if not path.resolve().parent.is_dir():
        raise ImageError(f"{path}: there is no folder {path.resolve().parent}; make it first")
    if path.exists() and not overwrite and not _is_demo_picture(path):
        raise ImageError(f"{path}: exists already and is no demo picture; choose another --output, or pass --overwrite")


def save_picture(picture: Image.Image, path: Path, *, overwrite: bool) -> None:
    """Write the picture as PNG in one step."""
    check_picture_path(path, overwrite=overwrite)
    texts = PngImagePlugin.PngInfo()
    texts.add_text(PICTURE_KEY, PICTURE_VALUE)
    partial = path.with_name(f".{path.name}.partial")
    try:
        picture.save(partial, format="PNG", pnginfo=texts, optimize=True)
        partial.replace(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _is_demo_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return bool(image.info.get(PICTURE_KEY) == PICTURE_VALUE)
    except (OSError, SyntaxError, ValueError):
        return False

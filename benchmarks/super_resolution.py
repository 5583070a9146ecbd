"""Super-resolution x2 of real clean frames: ``python -m benchmarks.super_resolution --data DATA``.

A clean frame is the truth on the fine grid. A wider point-spread function, 2x2 pixel integration and a camera with shot
and readout noise make the coarse frame that every method gets, with the camera's true numbers. The deconvolutions know
the point-spread function and have their iterations chosen on ``val``; photonstep is not told it.

Two figures of PSNR: after a least-squares line onto the truth (protocol B of `benchmarks.datasets`), and plain, in
photoelectrons as they come. Intervals are bootstraps over fields of view, whose channels are not independent.

Source of the peer: Richardson 1972, Lucy 1974, as scikit-image has it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import richardson_lucy

import photonstep as ps
from photonstep import metrics
from photonstep.kernels import ops

from . import machine
from .summary import interval_95

Float = NDArray[np.float32]
CLEAN_SETS = ("dsb2018", "kromp_nuclei", "bsd_misc", "vem_demo")
GROUPS = {"w2s8": "widefield cells (means of 400 frames)", "clean": "nuclei, spots and electron microscopy"}
LIGHT_PHOTONS = (10.0, 40.0, 200.0, 1000.0)
ITERATIONS = (1, 2, 3, 5, 8, 12, 20)
SIDE_PX, MARGIN_PX = 512, 8
BACKGROUND = 0.03  # of the peak
CAMERA = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.5)
SEED = 20261124
TITLES = {
    "bicubic": "bicubic",
    "rl_bicubic": "Richardson-Lucy, then bicubic",
    "bicubic_rl": "bicubic, then Richardson-Lucy",
    "base_bicubic": "`base`, then bicubic",
    "base_bicubic_rl": "`base`, bicubic, then Richardson-Lucy",
    "sr2_k1": "**`sr2` K = 1**",
    "sr2_k2": "`sr2` K = 2",
    "sr2_k4": "`sr2` K = 4",
}
OURS, DECONVOLUTIONS = "sr2_k1", ("rl_bicubic", "bicubic_rl", "base_bicubic_rl")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A clean frame, (H, W) with even sides; ``field`` is the unit of an interval."""

    group: str
    field: str
    plane: int
    frame: NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposure:
    """Expected photoelectrons per coarse pixel on the fine grid, (H, W), and the coarse counts, (H / 2, W / 2)."""

    scene: Scene
    light: float
    truth: NDArray[np.float64]
    counts: NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method made of one exposure."""

    group: str
    field: str
    plane: int
    light: float
    method: str
    psnr_db: float
    plain_psnr_db: float
    ssim: float


def scenes(data: Path, group: str, split: str, planes: int) -> Iterator[Scene]:
    """The clean frames of a group's split, cropped to their middle.

    Raises
    ------
    FileNotFoundError : none there
    """
    folders = [data / "paired/w2s8"] if group == "w2s8" else [data / "clean" / name for name in CLEAN_SETS]
    paths = [path for folder in folders for path in sorted((folder / split).glob("*.tif"))]
    if not paths:
        raise FileNotFoundError(f"no .tif file in the {split} folders of {[str(f) for f in folders]}; check --data")
    for path in paths:
        stack = tifffile.imread(path)
        frames = stack[1] if group == "w2s8" else stack.reshape(-1, *stack.shape[-2:])[:1]
        for plane, frame in enumerate(frames[:planes]):
            yield Scene(group=group, field=f"{path.parents[1].name}/{path.stem}", plane=plane, frame=_middle(frame))


def expose(scene: Scene, light: float, psf_sigma_px: float) -> Exposure:
    """Photograph a scene; ``light`` is the photoelectrons per coarse pixel of its brightest structures."""
    low, high = np.percentile(scene.frame, (0.1, 99.9))
    brightness = np.clip((scene.frame.astype(np.float64) - low) / max(high - low, 1e-9), 0, 2)
    truth = light * (BACKGROUND + brightness)
    blurred = ndimage.gaussian_filter(truth, psf_sigma_px, mode="mirror")
    expected = blurred.reshape(blurred.shape[0] // 2, 2, -1, 2).mean((1, 3))
    rng = np.random.default_rng((SEED, zlib.crc32(f"{scene.field}/{scene.plane}".encode()), round(light * 100)))
    electrons = rng.poisson(expected) + rng.normal(0, float(CAMERA.readout_noise_e), expected.shape)
    counts = np.rint(electrons / CAMERA.gain_e_per_adu + CAMERA.offset_adu)
    return Exposure(scene=scene, light=light, truth=truth, counts=np.clip(counts, 0, 65535).astype(np.uint16))


def psf(sigma_px: float, pixel: bool) -> NDArray[np.float64]:
    """The known point-spread function, sum 1; with the integration over 2x2 fine pixels or without it."""
    reach = int(np.ceil(4 * sigma_px)) + 1
    point = np.zeros((2 * reach + 1, 2 * reach + 1))
    point[reach, reach] = 1
    spread = ndimage.gaussian_filter(point, sigma_px)
    if pixel:  # averaged over 2x2 fine pixels, and interpolated back: a triangle, centred
        spread = ndimage.convolve(spread, np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]))
    return spread / spread.sum()


class Methods:
    """Every method: counts to photoelectrons per coarse pixel on the fine grid, float32."""

    def __init__(self, sr2: ps.Restorer, base: ps.Restorer, psf_sigma_px: float) -> None:
        self._sr2, self._base = sr2, base
        self._coarse_psf, self._fine_psf = psf(psf_sigma_px / 2, False), psf(psf_sigma_px, True)

    def restored(self, counts: NDArray[np.uint16], names: Sequence[str], iterations: Mapping[str, int]) -> Iterator:
        """Yield (name, image) of the methods that are asked for."""
        electrons = ((counts - CAMERA.offset_adu) * CAMERA.gain_e_per_adu).astype(np.float32)
        denoised: Float | None = None
        for name in names:
            if name.startswith("base") and denoised is None:
                denoised = self._base.restore(counts, camera=CAMERA, output="photoelectrons").image
            yield name, self._one(name, counts, electrons, denoised, iterations.get(name, 0))

    def _one(
        self, name: str, counts: NDArray[np.uint16], electrons: Float, denoised: Float | None, iterations: int
    ) -> Float:
        if name.startswith("sr2"):
            return self._sr2.restore(counts, camera=CAMERA, steps=int(name[-1]), output="photoelectrons").image
        image = electrons if denoised is None or not name.startswith("base") else denoised
        if name == "rl_bicubic":
            return ops.upsample2(_deconvolved(image, self._coarse_psf, iterations))
        fine = ops.upsample2(image)
        return _deconvolved(fine, self._fine_psf, iterations) if name.endswith("rl") else fine


def score(exposure: Exposure, method: str, image: Float) -> Row:
    """PSNR with and without the fitted line, and SSIM after it; the outermost pixels are left to the filters."""
    inside = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    low, high = np.percentile(exposure.truth, (0.1, 99.9))
    truth = (exposure.truth[inside] - low) / (high - low)
    plain = (image[inside].astype(np.float64) - low) / (high - low)
    fitted = metrics.fit_affine(truth, plain)
    scene = exposure.scene
    return Row(
        group=scene.group, field=scene.field, plane=scene.plane, light=exposure.light, method=method,
        psnr_db=metrics.psnr(truth, fitted, 1.0), plain_psnr_db=metrics.psnr(truth, plain, 1.0),
        ssim=metrics.ssim(truth, fitted, 1.0),
    )  # fmt: skip


def choose_iterations(exposures: Sequence[Exposure], methods: Methods) -> dict[str, int]:
    """The iterations of every deconvolution with the best mean PSNR over ``val`` exposures of one light level."""
    best = {}
    for name in DECONVOLUTIONS:
        means = {}
        for count in ITERATIONS:
            images = (next(methods.restored(e.counts, [name], {name: count}))[1] for e in exposures)
            means[count] = np.mean([score(e, name, i).psnr_db for e, i in zip(exposures, images, strict=True)])
        best[name] = max(means, key=lambda count: means[count])
    return best


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; the document is plain JSON."""
    bundles = (options.sr2, options.base)
    sr2, base = (ps.load(b, device="cpu", precision="fp32", threads=options.threads) for b in bundles)
    methods = Methods(sr2, base, options.psf_sigma)
    chosen: dict[str, dict[str, int]] = {}
    rows: list[Row] = []
    for light in options.light:
        val = [expose(s, light, options.psf_sigma) for s in scenes(options.data, "w2s8", "val", 1)]
        chosen[f"{light:g}"] = choose_iterations(val[: options.limit], methods)
        _tell(f"{light:g} photoelectrons, iterations chosen on val: {chosen[f'{light:g}']}")
        for group in GROUPS:
            for scene in list(scenes(options.data, group, "test", options.planes))[: options.limit]:
                exposure = expose(scene, light, options.psf_sigma)
                for name, image in methods.restored(exposure.counts, list(TITLES), chosen[f"{light:g}"]):
                    rows.append(score(exposure, name, image))
            _tell(f"{light:g} photoelectrons, {group}: done")
    return {
        "command": shlex.join(["python", "-m", "benchmarks.super_resolution", *options.arguments]),
        "machine": machine.record(),
        "bundles": {r.bundle.manifest.name: r.bundle.sha256 for r in (sr2, base)},
        "psf_sigma_px": options.psf_sigma,
        "iterations": chosen,
        "rows": [asdict(row) for row in rows],
    }


def render(document: Mapping[str, Any]) -> str:
    """The tables as Markdown: means, and the gains of `sr2` K = 1 over every other method."""
    rows = [Row(**row) for row in document["rows"]]
    lines = [
        f"Point-spread function of {document['psf_sigma_px']:g} fine pixels (Gaussian sigma) beyond the truth's own, "
        f"2x2 pixel integration, readout noise {CAMERA.readout_noise_e:g} e-. Light: photoelectrons per camera pixel "
        "of the brightest structures. PSNR after a least-squares line, plain PSNR (dB), SSIM; the gains are those of "
        "`sr2` K = 1 over the row, PSNR after the line and SSIM, with 95 % intervals over fields of view.",
        "",
    ]
    for group, title in GROUPS.items():
        fields = {row.field for row in rows if row.group == group}
        lines += [f"### {title}: {len(fields)} field{'s' * (len(fields) > 1)} of view", ""]
        lines += ["| light | method | PSNR | plain | SSIM | gain, dB | gain, SSIM |", "| --- " * 7 + "|"]
        for light in sorted({row.light for row in rows}):
            part = [row for row in rows if row.group == group and row.light == light]
            lines += [_line(part, light, method) for method in TITLES]
        lines.append("")
    chosen = "; ".join(f"{light} e-: {_counts(counts)}" for light, counts in document["iterations"].items())
    lines += [f"Richardson-Lucy iterations, chosen on `val`: {chosen}.", "", f"`{document['command']}`", ""]
    return "\n".join(lines)


def gain(rows: Sequence[Row], over: str, value: Callable[[Row], float]) -> tuple[float, tuple[float, float] | None]:
    """Mean gain of `sr2` K = 1 on the same exposures, with its interval over fields."""
    ours, theirs = ({(r.field, r.plane): value(r) for r in rows if r.method == m} for m in (OURS, over))
    gains = np.array([ours[key] - theirs[key] for key in ours])
    return float(gains.mean()), interval_95(gains, [field for field, _ in ours])


def _line(rows: Sequence[Row], light: float, method: str) -> str:
    mine = [row for row in rows if row.method == method]
    psnr, plain, ssim = (np.mean([getattr(r, n) for r in mine]) for n in ("psnr_db", "plain_psnr_db", "ssim"))
    gains = ["", ""]
    if method != OURS:
        gains = [
            _with_interval(gain(rows, method, lambda r: r.psnr_db), 2),
            _with_interval(gain(rows, method, lambda r: r.ssim), 3),
        ]
    return f"| {light:g} | {TITLES[method]} | {psnr:.2f} | {plain:.2f} | {ssim:.3f} | {gains[0]} | {gains[1]} |"


def _with_interval(found: tuple[float, tuple[float, float] | None], digits: int) -> str:
    mean, interval = found
    return f"{mean:+.{digits}f}" + (
        "" if interval is None else f" ({interval[0]:+.{digits}f} to {interval[1]:+.{digits}f})"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{TITLES[name]} {count}" for name, count in counts.items())


def _deconvolved(image: Float, kernel: NDArray[np.float64], iterations: int) -> Float:
    light = np.maximum(image, 1e-3)  # the algorithm is one of ratios
    scale = float(light.max())
    padded = np.pad(light / scale, MARGIN_PX, mode="symmetric")
    found = richardson_lucy(padded, kernel, num_iter=iterations, clip=False, filter_epsilon=1e-6)
    return np.asarray(found[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] * scale, np.float32)


def _middle(frame: NDArray[Any]) -> NDArray[Any]:
    sides = [min(n // 2 * 2, SIDE_PX) for n in frame.shape]
    top, left = ((n - s) // 2 for n, s in zip(frame.shape, sides, strict=True))
    return frame[top : top + sides[0], left : left + sides[1]]


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/ and clean/")
    parser.add_argument("--sr2", default="sr2", help="bundle, by name or path")
    parser.add_argument("--base", default="base", help="bundle, by name or path")
    parser.add_argument("--psf-sigma", type=float, default=1.2, help="of the wider optics, fine pixels")
    parser.add_argument("--light", type=float, nargs="+", default=LIGHT_PHOTONS, help="photoelectrons of the brightest")
    parser.add_argument("--planes", type=int, default=3, help="channels per field at most")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N exposures per group and light")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every per-image figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    document = run(options)
    report = render(document)
    print(report)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()

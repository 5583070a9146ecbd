"""THE path: a frame's whole way from counts to restored counts, on one screen.

    camera -> stabilise -> model range -> tiles -> sampler(denoiser) -> stitch -> inverse -> counts

The measured frame is itself the diffusion state at its own noise level: sampling starts there and walks to zero noise.
K = 1 is the posterior mean; 2 to 4 deterministic steps give texture back. A super-resolution bundle starts at the
upsampled frame and gives twice the side, in the units of the frame: the mean of four fine pixels is the coarse one.
"""

from __future__ import annotations

import numbers
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..kernels import ops
from . import pixel_integration, quality_flags, samplers, schedule, start
from .backends.choose import Choice, Probe, open_session
from .bundle import Bundle
from .camera import Camera
from .denoiser import Denoiser, NetworkInputs, output_weight
from .errors import BackendError, BundleError, CameraError, PlanError, ShapeError
from .manifest import MAX_SIDE_PX, ModelSpec
from .normalise import ModelRange, RangeTracker
from .photon_balance import photon_balance
from .tiling import pad_to_multiple, plan_tiles

ZOO: Final = Path(__file__).resolve().parent.parent / "models" / "zoo"
WHOLE_FRAME_PX: Final = 2048  # a frame with both sides within this runs as one tile
TILE_PX: Final = 1024
MINIMUM_SIDE_PX: Final = 16
MAXIMUM_SIDE_PX: Final = 8192
PROBE_PX: Final = 256

Output = Literal["input", "photoelectrons"]
OUTPUTS: Final[tuple[Output, ...]] = ("input", "photoelectrons")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a restoration will do: evaluations, sampler, detail, levels, tile size; goes into the provenance."""

    steps: int
    sampler: str = "ddim"
    detail: float = 0.0
    output: Output = "input"
    seed: int = 0
    report: bool = False
    tile_px: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.steps) or not 1 <= self.steps <= 1000:
            raise PlanError(
                f"steps is {self.steps!r}; expected an integer from 1 (safe mean) to 4 (detail), at most 1000"
            )
        if isinstance(self.detail, bool) or not isinstance(self.detail, numbers.Real) or not 0 <= self.detail <= 1:
            raise PlanError(f"detail is {self.detail!r}; expected a number from 0 (mean) to 1 (most texture)")
        if self.output not in OUTPUTS:
            raise PlanError(f"output is {self.output!r}; choose one of {', '.join(OUTPUTS)}")
        if self.tile_px is not None and not (_is_whole(self.tile_px) and self.tile_px >= MINIMUM_SIDE_PX):
            raise PlanError(f"tile_px is {self.tile_px!r}; expected a whole number, {MINIMUM_SIDE_PX} or more")
        if not _is_whole(self.seed) or self.seed < 0:
            raise PlanError(f"seed is {self.seed!r}; expected a whole number, 0 or more")
        self.rows()

    def rows(self) -> samplers.Table:
        """The sampler's table in units of the measured noise level, 1 -> 0."""
        return samplers.table(self.sampler, schedule.measured(self.steps))

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": int(self.steps),
            "sampler": self.sampler,
            "detail": float(self.detail),
            "output": self.output,
            "seed": int(self.seed),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """A restored frame or stack and how it came about.

    ``image`` has the input's shape (twice the side for super-resolution), and its dtype and units (ADU) or float32
    photoelectrons, both per measured pixel. ``sigma`` is the measured noise level in model units (of the last plane).
    ``network_ms`` is the part of ``latency_ms`` spent inside the network. ``flags`` name reasons to distrust the
    result. ``report`` holds the residual statistics when asked for.
    """

    image: NDArray[Any]
    sigma: float
    steps: int
    latency_ms: float
    network_ms: float
    flags: tuple[str, ...]
    camera: Camera
    plan: dict[str, Any]
    report: dict[str, float] = field(default_factory=dict)


class Restorer:
    """A bundle on a device. Call it with a frame; make one with `load`. One restorer serves one thread at a time."""

    def __init__(self, bundle: Bundle, choice: Choice) -> None:
        self.bundle = bundle
        self.choice = choice
        self._denoiser = Denoiser(bundle.manifest, choice.session)
        self._closed = False

    @property
    def backend_name(self) -> str:
        return self.choice.session.backend

    @property
    def device(self) -> str:
        return self.choice.session.device

    @property
    def precision(self) -> str:
        return self.choice.session.precision

    def __repr__(self) -> str:
        return f"Restorer({self.bundle.manifest.name} on {self.device}, {self.backend_name} {self.precision})"

    def __call__(self, frames: NDArray[Any], *, camera: Camera | None = None, steps: int | None = None) -> NDArray[Any]:
        """Restore and return the image alone; see `restore`."""
        return self.restore(frames, camera=camera, steps=steps).image

    def restore(
        self,
        frames: NDArray[Any],
        *,
        camera: Camera | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        detail: float = 0.0,
        output: Output = "input",
        report: bool = False,
        seed: int = 0,
        tile_px: int | None = None,
        tracker: RangeTracker | None = None,
    ) -> Result:
        """Restore one frame or a stack, plane by plane.

        Parameters
        ----------
        frames : (H, W) or (T, H, W) uint8, uint16 or float32, ADU, 16 to 8192 px a side; never modified
        camera : its offset, gain and readout noise; None estimates them from the frames (`Camera.estimate`)
        steps : network evaluations K (K - 1 of them for Heun count double); None takes the bundle's default
        sampler : a name of `runtime.samplers`; None takes the bundle's default
        detail : from 0 (mean) to 1 (most texture), for bundles with a detail knob
        output : "input" (dtype and units of the input) or "photoelectrons" (float32)
        report : also give the residual's variance and lag-1 correlation and the photon balance
        seed : of the noise that stochastic samplers add
        tile_px : restore in tiles of this side, pixels of the result; None decides by the result's size
        tracker : from `tracker`, shared by the calls that restore one sequence frame by frame; None starts anew

        Returns
        -------
        Result

        Raises
        ------
        ShapeError : wrong shape or dtype, an empty stack, a result above 8192 px, or camera maps of another shape
        CameraError : the camera cannot be estimated from these frames, or is none
        PlanError : steps, sampler or output that do not exist, or detail for a bundle without a knob
        BackendError : the device failed
        """
        if self._closed:
            raise BackendError("this restorer is closed; load the bundle again")
        started = time.perf_counter()
        manifest = self.bundle.manifest
        _check_frames(frames, manifest.scale)
        if not isinstance(camera, Camera | None):
            raise CameraError(
                f"camera is a {type(camera).__name__}; expected a photonstep.Camera, or None to estimate it"
            )
        plan = Plan(
            steps=manifest.defaults.steps if steps is None else steps, sampler=sampler or manifest.defaults.sampler,
            detail=detail, output=output, report=report, seed=seed, tile_px=tile_px,
        )  # fmt: skip
        if plan.detail and not manifest.model.detail_input:
            raise PlanError(
                f"detail is {detail}, but bundle {manifest.name} has no detail knob; leave it out, or use 0"
            )
        camera = Camera.estimate(frames) if camera is None else camera
        planes = frames[None] if frames.ndim == 2 else frames
        shape = (*frames.shape[:-2], *(manifest.scale * n for n in frames.shape[-2:]))
        image = np.empty((len(planes), *shape[-2:]), np.float32 if output == "photoelectrons" else frames.dtype)
        tracker = tracker or self.tracker()
        findings = [self._restore_plane(f, camera, plan, tracker, out) for f, out in zip(planes, image, strict=True)]
        latency_ms = (time.perf_counter() - started) * 1e3
        return Result(
            image=image.reshape(shape),
            sigma=findings[-1].sigma,
            steps=plan.steps,
            latency_ms=latency_ms,
            network_ms=sum(f.network_ms for f in findings),
            flags=quality_flags.merge([f.flags for f in findings]),
            camera=camera,
            plan=plan.as_dict(),
            report=quality_flags.mean_report([f.report for f in findings]),
        )

    def tracker(self) -> RangeTracker:
        """A memory of brightness for one sequence: its frames, restored in separate calls, then do not flicker."""
        return RangeTracker(self.bundle.manifest.normalisation)

    def _restore_plane(
        self, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker, out: NDArray[Any]
    ) -> quality_flags.Finding:
        """One plane through the whole path, written into ``out``."""
        self._denoiser.network_ms = 0.0
        scale = self.bundle.manifest.scale
        whole, missing = _bridge_missing(frame)
        z = camera.stabilise(whole)
        model_range = tracker.update(z)
        restored = model_range.from_model(self._sample(model_range.to_model(z), model_range, camera, plan))
        fine_camera = camera.enlarged(scale)
        electrons = fine_camera.unstabilise(restored)
        full = quality_flags.full_pixels(frame, camera)
        seen = pixel_integration.coarse(electrons, scale)
        balance = photon_balance(whole, seen, camera, _either(full, missing))
        balance.apply(electrons)
        if plan.output == "photoelectrons":
            out[...] = electrons
        else:
            out[...] = ops.to_counts(
                electrons, out.dtype, offset_adu=fine_camera.offset_adu, gain_e_per_adu=fine_camera.gain_e_per_adu
            )
        if missing is not None:
            gaps = pixel_integration.fine(missing, scale)
            out[gaps] = pixel_integration.fine(frame, scale)[gaps] if plan.output == "input" else np.nan
        if scale > 1:
            restored = pixel_integration.as_measured(z, balance.apply(seen), camera)
        finding = quality_flags.examine(
            z, restored, seen, camera,
            sigma=model_range.sigma, full=full, missing=missing, limits=self.bundle.manifest.operating_range,
            network_ms=self._denoiser.network_ms, report=plan.report,
        )  # fmt: skip
        if plan.report:
            finding.report["balance_gain"], finding.report["balance_shift_e"] = balance
        return finding

    def _sample(
        self, u: NDArray[np.float32], model_range: ModelRange, camera: Camera, plan: Plan
    ) -> NDArray[np.float32]:
        """Walk from the first state to zero, tile by tile; (H, W) model units in, (H scale, W scale) out."""
        manifest = self.bundle.manifest
        model = manifest.model
        u = start.on_the_grid(manifest, u)
        padded = pad_to_multiple(u, model.multiple)
        rows = start.rows(manifest, plan.sampler, plan.steps)
        noise = samplers.seeded_noise(plan.seed, padded.shape) if start.needs_noise(manifest, rows) else None
        tile_px = _tile_px(plan, model, max(padded.shape))
        halo_px = model.receptive_radius_px * len(rows)  # every evaluation widens what a pixel has seen
        stitched = np.empty_like(padded)
        for tile in plan_tiles(_two(padded.shape), tile_px=tile_px, halo_px=halo_px, multiple=model.multiple):
            measured = np.ascontiguousarray(padded[tile.read])
            drawn = None if noise is None else samplers.cropped_noise(noise, tile.read)
            stitched[tile.keep] = samplers.sample(
                start.first_state(manifest, measured, rows, drawn),
                rows,
                self._denoiser.at(camera.noise_correlation, plan.detail, measured),
                sigma_map=start.sigma_scale(manifest, model_range.sigma),
                noise=drawn,
                measurement=measured,
            )[tile.inner]
        return stitched[: u.shape[0], : u.shape[1]]

    def close(self) -> None:
        """Free the network. The restorer then refuses to restore."""
        self._closed = True
        self.choice.session.close()


def load(
    bundle: str | Path | Bundle,
    *,
    device: str = "auto",
    backend: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
) -> Restorer:
    """Open a bundle on a device.

    Parameters
    ----------
    bundle : "base", "live" (shipped), the path of a ``.photonstep`` file, or a loaded `Bundle`
    device : "auto" or "cpu"; "cuda" raises until a backend serves it
    backend : "openvino", "onnxruntime", or None to choose
    precision : "fp32", "bf16", "int8" (where the bundle holds one), or "auto": the fastest in a timed run that stays
        within the parity budget
    threads : CPU threads, or None for the library's choice

    Raises
    ------
    BundleError : no such bundle, or it is damaged
    BackendError : the device or backend cannot be used; the message names the cause
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(find_bundle(bundle))
    networks: dict[str, bytes] = {p: opened.network(p) for p in opened.networks}
    choice = open_session(
        networks, _probe(opened), device=device, backend=backend, precision=precision, threads=threads
    )
    return Restorer(opened, choice)


def find_bundle(name: str | Path) -> Path:
    """The file of a shipped bundle by name, or the path itself."""
    shipped = shipped_bundles()
    if str(name) in shipped:
        return shipped[str(name)]
    path = Path(name)
    if not path.exists():
        raise BundleError(
            f"no bundle {str(name)!r}; choose a shipped one ({', '.join(shipped)}) or the path of a .photonstep file"
        )
    return path


def shipped_bundles() -> dict[str, Path]:
    """Bundles that came with the package, by name."""
    return {p.stem: p for p in sorted(ZOO.glob("*.photonstep"))}


def _probe(bundle: Bundle) -> Probe:
    """A real frame as network inputs: the bundle's test frame, or a simulated flat field where it has none."""
    manifest = bundle.manifest
    side_px = PROBE_PX // manifest.scale
    if manifest.test_frame is not None:
        frame = bundle.read_array(manifest.test_frame.input)[:side_px, :side_px]
        camera = Camera(**manifest.test_frame.camera.model_dump())
    else:
        frame = np.random.default_rng(0).poisson(50.0, (side_px, side_px)).astype(np.uint16)
        camera = Camera()
    z = camera.stabilise(frame)
    model_range = RangeTracker(manifest.normalisation).update(z)
    u = pad_to_multiple(start.on_the_grid(manifest, model_range.to_model(z)), manifest.model.multiple)
    # the first level: 1 for a walk from the frame; elsewhere that is where the least precision sends a walk astray
    sigma = start.levels(manifest, manifest.defaults.steps)[0] * start.sigma_scale(manifest, model_range.sigma)
    inputs = NetworkInputs(manifest)(u, sigma, camera.noise_correlation, measurement=u)
    return Probe(inputs=inputs, error_scale=output_weight(manifest, sigma, model_range.sigma))


def _tile_px(plan: Plan, model: ModelSpec, side_px: int) -> int:
    """Side of a tile; a network that sees the whole frame (attention, normalisation over space) runs in one piece."""
    if model.receptive_radius_px < MAX_SIDE_PX:
        return plan.tile_px or (WHOLE_FRAME_PX if side_px <= WHOLE_FRAME_PX else TILE_PX)
    if plan.tile_px is not None and plan.tile_px < side_px:
        raise PlanError(
            f"tile_px is {plan.tile_px}, but every pixel of this network sees the whole frame, so that tiles would "
            "change the result; leave tile_px out, or crop the frame"
        )
    return side_px


def _check_frames(frames: NDArray[Any], scale: int) -> None:
    if not isinstance(frames, np.ndarray):
        raise ShapeError(f"frames are a {type(frames).__name__}; expected a NumPy array, see numpy.asarray")
    if frames.dtype.name not in ops.FRAME_DTYPES:
        raise ShapeError(
            f"frames are {frames.dtype}; expected {', '.join(ops.FRAME_DTYPES)}: convert with astype, mind the range"
        )
    if frames.ndim not in (2, 3) or not frames.size:
        raise ShapeError(f"frames have shape {frames.shape}; expected (H, W) or (T, H, W) with at least one plane")
    low, high, most = min(frames.shape[-2:]), max(frames.shape[-2:]), MAXIMUM_SIDE_PX // scale
    if low < MINIMUM_SIDE_PX or high > most:
        raise ShapeError(
            f"frames are {frames.shape[-2]}x{frames.shape[-1]} px; expected {MINIMUM_SIDE_PX} to {most} px "
            "a side: pad or crop them"
        )


def _bridge_missing(frame: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The frame with NaN, infinite and fill values replaced by the median of the others, and where they were."""
    if frame.dtype.kind != "f":
        return frame, None
    missing = ~ops.usable_pixels(frame)
    if not missing.any():
        return frame, None
    if missing.all():
        raise ShapeError("a plane holds no finite pixel; expected some signal: leave the plane out")
    return np.where(missing, np.median(frame[~missing]), frame).astype(np.float32), missing


def _is_whole(number: object) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def _either(a: NDArray[np.bool_] | None, b: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if a is None or b is None:
        return b if a is None else a
    return a | b


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = shape
    return height, width

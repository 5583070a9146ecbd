"""THE path: a frame's whole way from counts to restored counts, on one screen.

    camera -> stabilise -> model range -> tiles -> sampler(denoiser) -> stitch -> inverse -> counts

The measured frame is itself the diffusion state at its own noise level: sampling starts there and walks to zero noise.
K = 1 is the posterior mean; 2 to 4 deterministic steps give texture back. A super-resolution bundle starts at the
upsampled frame and gives twice the side, in the units of the frame: the mean of four fine pixels is the coarse one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from ..kernels import native, ops
from . import pixel_integration, quality_flags, samplers, start
from .backends.choose import Choice, Probe, open_session
from .bundle import Bundle
from .camera import Camera
from .denoiser import Denoiser, NetworkInputs, Scene, output_weight
from .errors import BackendError, BundleError, CameraError, PlanError
from .fair_lock import FairLock, in_turn
from .frames import bridge_missing, check_frames, either, output_array, padded_map
from .normalise import RangeTracker
from .on_device import OnDevice
from .photon_balance import photon_balance
from .plan import Output, Plan, Result, side_of_tile
from .temporal import FusionSettings, TemporalFusion
from .tiling import pad_to_multiple, plan_tiles
from .workspace import Workspace

if TYPE_CHECKING:
    from .stream import LiveStream
    from .stream_settings import StreamOptions

ZOO: Final = Path(__file__).resolve().parent.parent / "models" / "zoo"
PROBE_PX: Final = 256


class Fusion(Protocol):
    """A memory of the measured frames of one sequence, see `runtime.temporal`."""

    def update(
        self, z: NDArray[np.float32], camera: Camera, missing: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], float | NDArray[np.float32]]:
        """The fused frame and its noise (number or map) in units of one frame's; ``missing`` pixels hold no count."""
        ...


class Restorer:
    """A bundle on a device. Call it with a frame; make one with `load`.

    Threads may share a restorer: it serves one at a time, in the order in which they came (``turn``).
    """

    def __init__(self, bundle: Bundle, choice: Choice, *, threads: int | None = None) -> None:
        self.bundle = bundle
        self.choice = choice
        self.threads = threads
        self.turn = FairLock()
        self._denoiser = Denoiser(bundle.manifest, choice.session)
        self._workspace = Workspace()
        self._on_device = OnDevice(bundle.manifest, choice.session)
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

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @in_turn
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
        fusion: Fusion | None = None,
        out: NDArray[Any] | None = None,
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
        fusion : from `fusion`, shared like ``tracker``: frames in which nothing moved are fused; None fuses none
        out : array to write the image into, C order, of the result's shape and dtype; None makes one

        Returns
        -------
        Result

        Raises
        ------
        ShapeError : wrong shape or dtype, an empty stack, a result above 8192 px, or camera maps of another shape
        CameraError : the camera cannot be estimated from these frames, or is none
        PlanError : steps, sampler or output that do not exist, detail for a bundle without a knob, or fusion for a
            network that takes one noise level per image
        BackendError : the device failed
        """
        self._check_open()
        started = time.perf_counter()
        manifest = self.bundle.manifest
        check_frames(frames, manifest.scale)
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
        if fusion is not None:
            start.check_fusable(manifest)
        camera = Camera.estimate(frames) if camera is None else camera
        planes = frames[None] if frames.ndim == 2 else frames
        shape = (*frames.shape[:-2], *(manifest.scale * n for n in frames.shape[-2:]))
        image = output_array(
            out, shape, np.dtype(np.float32 if output == "photoelectrons" else frames.dtype.newbyteorder("="))
        )
        restored = image.reshape(len(planes), *shape[-2:])
        tracker = tracker or self.tracker()
        findings = [
            self._restore_plane(f, camera, plan, tracker, fusion, r) for f, r in zip(planes, restored, strict=True)
        ]
        latency_ms = (time.perf_counter() - started) * 1e3
        return Result(
            image=image,
            sigma=findings[-1].sigma,
            steps=plan.steps,
            latency_ms=latency_ms,
            network_ms=sum(f.network_ms for f in findings),
            flags=quality_flags.merge([f.flags for f in findings]),
            camera=camera,
            plan=plan.as_dict(),
            backend=self.backend_name,
            report=quality_flags.mean_report([f.report for f in findings]),
        )

    def tracker(self) -> RangeTracker:
        """A memory of brightness for one sequence: its frames, restored in separate calls, then do not flicker."""
        return RangeTracker(self.bundle.manifest.normalisation)

    def fusion(self, settings: FusionSettings | None = None) -> TemporalFusion:
        """A memory of the measured frames of one sequence, for `restore`: less noise wherever nothing moved."""
        return TemporalFusion(settings)

    def _restore_plane(
        self, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker, fusion: Fusion | None,
        out: NDArray[Any],
    ) -> quality_flags.Finding:  # fmt: skip
        """One plane through the whole path, written into ``out``; on a GPU in one piece where it can be."""
        finding = self._on_device.restore(frame, camera, plan, tracker, fusion, out)
        if finding is not None:
            return finding
        self._denoiser.network_ms = 0.0
        scale = self.bundle.manifest.scale
        whole, missing = bridge_missing(frame)
        z = camera.stabilise(whole, out=self._workspace.array("z", frame.shape))
        noise: float | NDArray[np.float32] = 1.0
        if fusion is not None:
            z, noise = fusion.update(z, camera, missing)
        model_range = tracker.update(z)
        drawn = self._noise(whole, plan)
        u = self._sample(
            model_range.to_model(z, out=self._workspace.array("u", z.shape)),
            noise,
            model_range.sigma,
            camera,
            plan,
            drawn,
        )
        fine_camera = camera.enlarged(scale)
        electrons = ops.electrons_of(
            u, span=model_range.span_z, centre=model_range.centre_z, readout_noise_e=fine_camera.readout_noise_e,
            out=self._workspace.array("electrons", u.shape),
        )  # fmt: skip
        full = quality_flags.full_pixels(frame, camera)
        seen = pixel_integration.coarse(electrons, scale)
        balance = photon_balance(whole, seen, camera, either(full, missing))
        adu_per_e, offset_adu = (1.0, 0.0) if plan.output == "photoelectrons" else (
            fine_camera.adu_per_e, fine_camera.offset_adu
        )  # fmt: skip
        photons_e = ops.write_counts(
            electrons, out, offset_adu=offset_adu, adu_per_e=adu_per_e, gain=balance.gain, shift_e=balance.shift_e
        )
        if missing is not None:
            gaps = pixel_integration.fine(missing, scale)
            out[gaps] = pixel_integration.fine(frame, scale)[gaps] if plan.output == "input" else np.nan
        step = 1 if plan.report else quality_flags.EXAMINED_ROWS
        if scale == 1:
            span, centre = model_range.span_z, model_range.centre_z
            residual = ops.residual_statistics(z, u, span=span, centre=centre, noise=noise, step=step)
        else:
            again = pixel_integration.as_measured(z, balance.apply(seen), camera)
            residual = ops.residual_statistics(z, again, noise=noise, step=step)
        finding = quality_flags.examine(
            residual, camera, photons_e=photons_e, sigma=model_range.sigma * float(np.mean(noise)), full=full,
            missing=missing, limits=self.bundle.manifest.operating_range, network_ms=self._denoiser.network_ms,
            report=plan.report,
        )  # fmt: skip
        if plan.report:
            finding.report["balance_gain"], finding.report["balance_shift_e"] = balance
        return finding

    def _noise(self, frame: NDArray[Any], plan: Plan) -> samplers.FrameNoise | None:
        """Noise of a random walk: of the frame's content and the plan's seed."""
        manifest = self.bundle.manifest
        if not start.needs_noise(manifest, start.rows(manifest, plan.sampler, plan.steps)):
            return None
        height, width = (
            -(-manifest.scale * n // manifest.model.multiple) * manifest.model.multiple for n in frame.shape
        )
        return samplers.FrameNoise.of(frame, (height, width), plan.seed)

    def _sample(
        self, u: NDArray[np.float32], noise: float | NDArray[np.float32], sigma: float, camera: Camera, plan: Plan,
        drawn: samplers.FrameNoise | None,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Walk from the first state to zero, tile by tile; (H, W) model units in, (H scale, W scale) out."""
        manifest = self.bundle.manifest
        model = manifest.model
        u = start.on_the_grid(manifest, u)
        padded = pad_to_multiple(u, model.multiple)
        rows = start.rows(manifest, plan.sampler, plan.steps)
        level = start.sigma_scale(manifest, sigma, padded_map(noise, manifest.scale, model.multiple))
        side_px = side_of_tile(plan, model, max(padded.shape))
        halo_px = model.receptive_radius_px * len(rows)  # every evaluation widens what a pixel has seen
        tiles = plan_tiles(_two(padded.shape), tile_px=side_px, halo_px=halo_px, multiple=model.multiple)
        stitched = np.empty_like(padded) if len(tiles) > 1 else padded
        for tile in tiles:
            measured = np.ascontiguousarray(padded[tile.read])
            part = None if drawn is None else drawn.window(tile.read)
            walked = self._denoiser.walk(
                np.asarray(start.first_state(manifest, measured, rows, part), np.float32),
                rows,
                Scene(noise_correlation=camera.noise_correlation, detail=plan.detail, measurement=measured),
                sigma_map=np.ascontiguousarray(level[tile.read]) if isinstance(level, np.ndarray) else level,
                noise=part,
                out=self._workspace.array("state", measured.shape),
            )
            if len(tiles) == 1:
                return walked[: u.shape[0], : u.shape[1]]
            stitched[tile.keep] = walked[tile.inner]
        return stitched[: u.shape[0], : u.shape[1]]

    def stream(self, **settings: Unpack[StreamOptions]) -> LiveStream:
        """Restore frames as they come, on a thread of its own: `photonstep.runtime.stream.LiveStream`, docs/live.md.

        Parameters
        ----------
        settings : camera, deadline_ms, policy, temporal, steps, warm_up...: those of
            `photonstep.runtime.stream_settings.StreamSettings`, all optional

        Raises
        ------
        StreamError, CameraError, PlanError : no such setting, or a value that the stream cannot take
        ShapeError : ``warm_up`` is no frame
        BackendError : this restorer is closed, or the fallback cannot be opened
        """
        from .stream import LiveStream
        from .stream_settings import StreamSettings, check_names

        self._check_open()
        check_names(settings)
        return LiveStream(self, StreamSettings(**settings))

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this restorer is closed; load the bundle again")

    @in_turn
    def reopen(self) -> None:
        """Open the network anew, on the same device in the same precision: after the device failed.

        Raises
        ------
        BackendError : the restorer was closed, or the device still fails
        """
        self._check_open()
        again = load(
            self.bundle, device=self.device, backend=self.backend_name, precision=self.precision, threads=self.threads
        )
        self.choice.session.close()
        self.choice, self._denoiser = again.choice, again._denoiser

    @in_turn
    def close(self) -> None:
        """Free the network. The restorer then refuses to restore."""
        self._closed = True
        self._on_device.close()
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
    device : "auto" (a GPU where one can be used, otherwise the CPU), "cpu", or "cuda": a GPU or an error
    backend : "openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", or None to choose
    precision : "fp32", "bf16", "int8" (where the bundle holds one), or "auto": the fastest in a timed run that stays
        within the parity budget
    threads : CPU threads, or None for the library's choice

    Raises
    ------
    BundleError : no such bundle, or it is damaged
    BackendError : the device, backend or kernels cannot be used; the message names the cause
    """
    try:
        native.library()
    except native.KernelError as error:
        raise BackendError(str(error)) from None
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(find_bundle(bundle))
    networks: dict[str, bytes] = {p: opened.network(p) for p in opened.networks}
    choice = open_session(
        networks, _probe(opened), device=device, backend=backend, precision=precision, threads=threads
    )
    return Restorer(opened, choice, threads=threads)


def find_bundle(name: str | Path) -> Path:
    """The file of a shipped bundle by name, or the path itself."""
    if not isinstance(name, str | Path):
        raise BundleError(f"bundle is a {type(name).__name__}; expected a name, a path or a photonstep.Bundle")
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
    sigma = start.levels(manifest, manifest.defaults.steps)[0] * float(start.sigma_scale(manifest, model_range.sigma))
    inputs = NetworkInputs(manifest)(u, sigma, Scene(noise_correlation=camera.noise_correlation, measurement=u))
    return Probe(inputs=inputs, error_scale=output_weight(manifest, sigma, model_range.sigma))


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = shape
    return height, width

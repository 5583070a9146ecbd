"""Whether a plane can be restored on a GPU from end to end, and if so, restores it there."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from . import quality_flags
from .backends.protocol import DeviceNetwork, Session
from .camera import Camera
from .cuda_path import CudaPath, unsupported
from .manifest import Manifest
from .normalise import RangeTracker
from .plan import Plan


class OnDevice:
    """The device path of a session, made when its network is there: a session may get one while it runs."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._manifest, self._session = manifest, session
        self._is_supported = unsupported(manifest) is None
        self._network: DeviceNetwork | None = None
        self._path: CudaPath | None = None

    @property
    def memory_bytes(self) -> int:
        """Device memory that restoring holds."""
        return 0 if self._path is None else self._path.memory_bytes

    @property
    def path(self) -> CudaPath | None:
        """The path in use, or None before the first frame, on a CPU, or for bundles that it cannot serve."""
        return self._path

    def restore(
        self, frame: NDArray[Any], camera: Camera, plan: Plan, tracker: RangeTracker, fusion: object | None,
        out: NDArray[Any],
    ) -> quality_flags.Finding | None:  # fmt: skip
        """Restore one plane into ``out``; None where the general path must serve it: see `CudaPath.restore`.

        A fused sequence has its memory on the host, and so takes the general path.
        """
        network: DeviceNetwork | None = getattr(self._session, "on_device", None)
        if network is None or fusion is not None or not self._is_supported:
            return None
        if network is not self._network or self._path is None:
            self.close()
            self._network, self._path = network, CudaPath(self._manifest, network)
        return self._path.restore(frame, camera, plan, tracker, out)

    def close(self) -> None:
        """Free the device memory."""
        if self._path is not None:
            self._path.close()
        self._path = None

"""``photonstep calibrate``: a camera from a stack of dark frames and stacks of evenly lit ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from photonstep.runtime.camera import Camera
from photonstep.runtime.errors import CameraError
from photonstep.runtime.images import open_image


def calibrate_files(dark: Path, flats: Sequence[Path], *, maps: bool) -> tuple[Camera, int]:
    """Return the camera that photon transfer finds in image files, and how many dark frames there were.

    Parameters
    ----------
    dark : stack of frames with the shutter closed
    flats : stacks of frames of a static scene, one for each light level
    maps : offset and readout noise for each pixel, not one number for all

    Raises
    ------
    ImageError : a file cannot be read
    CameraError : a stack has one frame only, or the stacks do not fit together
    """
    stacks = [_stack(path) for path in (dark, *flats)]
    for path, stack in zip((dark, *flats), stacks, strict=True):
        if stack.shape[1:] != stacks[0].shape[1:]:
            raise CameraError(
                f"{path}: frames are {stack.shape[1:]}, those of {dark} are {stacks[0].shape[1:]}; "
                "record all stacks with one region of interest"
            )
    return Camera.calibrate(dark=stacks[0], flats=stacks[1:], maps=maps), len(stacks[0])


def _stack(path: Path) -> npt.NDArray[Any]:
    with open_image(path) as reader:
        if reader.plane_count < 2:
            raise CameraError(f"{path}: has one frame; noise shows in repeated frames: record 2 or more (100 for maps)")
        return np.stack([plane for _, plane in reader.planes()])

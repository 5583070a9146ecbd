"""What the live benchmark is told; the defaults are the release's marks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """Settings of all parts.

    Parameters
    ----------
    bundle : what restores, except in the part ``deadline``
    ladder_bundle, ladder_steps, deadline_ms, ladder_fps, phase_s, phases : of the part ``deadline``: the bundle on top
        of the ladder, its most steps, and how long the other core is left alone and kept busy in turn
    threads, precision : of the networks
    side_px : side of the frames
    frames : frames of a run
    fps : of the paced camera
    fast_fps : of the camera that is faster than the restoration, in the part ``stale``
    minutes, sample_s : of the part ``memory``
    pauses, pause_s, before_pause : pauses, their length, and frames before each
    turns : timed frames of each variant in the part ``cost``
    freeze_gc : the stream's setting of that name

    Raises
    ------
    ValueError : a number that must be positive is not
    """

    bundle: str = "live"
    ladder_bundle: str = "base"
    ladder_steps: int = 4
    deadline_ms: float = 45.0
    ladder_fps: float = 20.0
    phase_s: float = 10.0
    phases: int = 8
    threads: int = 2
    precision: str = "auto"
    side_px: int = 512
    frames: int = 10_000
    fps: float = 30.0
    fast_fps: float = 300.0
    minutes: float = 10.0
    sample_s: float = 1.0
    pauses: int = 6
    pause_s: float = 10.0
    before_pause: int = 90
    turns: int = 200
    freeze_gc: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")

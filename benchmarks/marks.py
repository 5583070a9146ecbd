"""The marks that a release must reach, judged from a results document: target, measured, passed or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bias import magnitude
from .datasets import MODALITIES
from .methods import STEPS
from .summary import Group, Row, best_gaussian, gain_of, groups, mean_of, reporting_groups

W2S_TEST = Group(set_name="w2s8", split="test")
FMD_TEST = Group(set_name="fmd_testmix", split="test")
CLASSICAL = {"nlm": "non-local means", "tv": "total variation", "wavelet": "wavelet"}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One mark; ``passed`` is None when what it needs was not measured."""

    name: str
    target: str
    measured: str
    passed: bool | None


def judge(rows: Sequence[Row], document: Mapping[str, Any]) -> list[Mark]:
    """All marks, quality first.

    Parameters
    ----------
    rows : per-image figures
    document : the results document; its "timing", "bias" and "speed" parts may be absent
    """
    return [
        _at_least(rows, W2S_TEST, "base_k1", 32.0),
        _at_least(rows, FMD_TEST, "base_k1", 34.0),
        *_over_gaussian(rows),
        *(_over_everywhere(rows, peer, title) for peer, title in CLASSICAL.items()),
        _over_open_image_denoise(rows),
        _faster_than_open_image_denoise(document.get("timing")),
        _blind_gap(rows),
        _live_gap(rows),
        _steps_measured(rows),
        *_bias_marks(document.get("bias")),
        *_speed_marks(document.get("speed")),
    ]


def _at_least(rows: Sequence[Row], group: Group, method: str, target_db: float) -> Mark:
    mean = mean_of(rows, group, method)
    return _mark(
        f"{method} on {group.title}",
        f"{target_db:.1f} dB or more",
        None if mean is None else f"{mean.psnr_db:.2f} dB / {mean.ssim:.3f}",
        mean is not None and mean.psnr_db >= target_db,
    )


def _over_gaussian(rows: Sequence[Row]) -> list[Mark]:
    """Against one sigma for the whole set, as the sets' own table defines it, and against the modality's own best."""
    marks: list[Mark] = []
    for modality in MODALITIES:
        group = Group(set_name=FMD_TEST.set_name, split=FMD_TEST.split, modality=modality)
        mean = mean_of(rows, group, "base_k1")
        for sigma_for, scope in (("set", FMD_TEST), ("modality (stricter than asked)", group)):
            best = best_gaussian(rows, scope)
            gaussian = mean_of(rows, group, best) if best else None
            measured = mean.psnr_db if mean and gaussian else None
            marks.append(
                _mark(
                    f"base_k1 on {group.title} above the Gaussian best for the {sigma_for}",
                    "above" if gaussian is None else f"above {gaussian.psnr_db:.2f} dB ({best})",
                    None if measured is None else f"{measured:.2f} dB",
                    measured is not None and gaussian is not None and measured > gaussian.psnr_db,
                )
            )
    return marks


def _over_everywhere(rows: Sequence[Row], peer: str, title: str) -> Mark:
    """The smallest gain of base over a peer on any set and split."""
    gains = {g.title: gain_of(rows, g, "base_k1", peer) for g in groups(rows) if g.modality is None}
    measured = {name: gain[0] for name, gain in gains.items() if gain is not None}
    worst = min(measured, key=measured.__getitem__, default=None)
    complete = len(measured) == len(gains)
    return _mark(
        f"base_k1 above {title} on every set",
        "above 0 dB on the worst set",
        None if worst is None or not complete else f"{measured[worst]:+.2f} dB ({worst})",
        worst is not None and measured[worst] > 0,
    )


def _over_open_image_denoise(rows: Sequence[Row]) -> Mark:
    gains = [gain_of(rows, group, "base_k1", "oidn_high") for group in reporting_groups(rows)]
    measured = [gain[0] for gain in gains if gain is not None]
    complete = bool(gains) and len(measured) == len(gains)
    return _mark(
        "base_k1 above Open Image Denoise (high), mean over sets",
        "0.30 dB or more",
        f"{np.mean(measured):+.2f} dB over {len(measured)} sets" if complete else None,
        complete and float(np.mean(measured)) >= 0.3,
    )


def _faster_than_open_image_denoise(timing: Mapping[str, Any] | None) -> Mark:
    """The whole of base, frame in to frame out, against the bare filter of the peer: the stricter comparison."""
    methods = (timing or {}).get("methods", {})
    known = "base_k1" in methods and "oidn_high_filter_only" in methods
    ratio = methods["oidn_high_filter_only"]["median_ms"] / methods["base_k1"]["median_ms"] if known else 0.0
    return _mark(
        "base_k1 faster than Open Image Denoise (high), its filter alone",
        "5 times or more",
        f"{ratio:.1f} times" if known else None,
        ratio >= 5.0,
    )


def _blind_gap(rows: Sequence[Row]) -> Mark:
    gaps = {g.title: gain_of(rows, g, "base_k1_oracle", "base_k1") for g in groups(rows) if g.modality is None}
    measured = {name: gap[0] for name, gap in gaps.items() if gap is not None}
    worst = max(measured, key=measured.__getitem__, default=None)
    mean = float(np.mean(list(measured.values()))) if measured else 0.0
    text = f"{measured[worst]:.2f} dB ({worst}), mean {mean:.2f} dB" if worst and len(measured) == len(gaps) else None
    return _mark(
        "blind below the camera fitted to the ground truth",
        "at most 0.30 dB on the worst set",
        text,
        worst is not None and measured[worst] <= 0.3,
    )


def _live_gap(rows: Sequence[Row]) -> Mark:
    gaps = {g.title: gain_of(rows, g, "base_k1", "live_k1") for g in groups(rows) if g.modality is None}
    measured = {name: gap[0] for name, gap in gaps.items() if gap is not None}
    worst = max(measured, key=measured.__getitem__, default=None)
    return _mark(
        "live_k1 below base_k1",
        "at most 0.60 dB on the worst set",
        f"{measured[worst]:.2f} dB ({worst})" if worst and len(measured) == len(gaps) else None,
        worst is not None and measured[worst] <= 0.6,
    )


def _steps_measured(rows: Sequence[Row]) -> Mark:
    wanted = [f"{tier}_k{k}" for tier in ("base", "live") for k in STEPS]
    tried = any(row.method in wanted for row in rows)
    complete = [m for m in wanted if tried and all(mean_of(rows, g, m) for g in groups(rows))]
    return _mark(
        "K = 1, 2 and 4 each have their row, base and live",
        f"{len(wanted)} rows on every set",
        f"{len(complete)} rows" if tried else None,
        complete == wanted,
    )


def _bias_marks(bias: Mapping[str, Any] | None) -> list[Mark]:
    cases = (bias or {}).get("cases", [])
    marks: list[Mark] = []
    for camera in ("known", "blind"):
        chosen = [case for case in cases if case["camera"] == camera and case["steps"] == 1]
        worst = max(chosen, key=magnitude, default=None)
        name = f"photon bias, 3 to 1000 photons, camera {camera}"
        if worst is None:
            marks.append(_mark(name, "at most 1 %", None, False))
            continue
        value = "no camera" if worst["bias_percent"] is None else f"{worst['bias_percent']:+.2f} %"
        where = f"{worst['bundle']}, {worst['field']}, {worst['photons']:g} photons"
        marks.append(_mark(name, "at most 1 %", f"{value} ({where})", magnitude(worst) <= 1.0))
    return marks


def _speed_marks(speed: Mapping[str, Any] | None) -> list[Mark]:
    marks: list[Mark] = []
    for tier, fps in (("live", 45.0), ("base", 15.0)):
        row = next((r for r in (speed or {}).get("rows", []) if _is_mark_row(r, tier)), None)
        latency = None if row is None else row["latency"]
        text = None if latency is None else f"{latency['fps']:.1f} fps, p50 {latency['p50_ms']:.1f} ms"
        share = 0.0 if latency is None else 100 * latency["outside_network_share"]
        text_share = None if latency is None else f"{share:.0f} %"
        marks.append(
            _mark(
                f"{tier}, 512x512, K = 1", f"{fps:.0f} fps or more", text, latency is not None and latency["fps"] >= fps
            )
        )
        marks.append(_mark(f"{tier}, share outside the network", "under 15 %", text_share, share < 15.0))
    import_s = (speed or {}).get("import_s")
    text = None if import_s is None else f"{import_s:.2f} s"
    marks.append(
        _mark(
            "import photonstep with its load and Camera, torch and onnx blocked",
            "under 0.3 s",
            text,
            import_s is not None and import_s < 0.3,
        )
    )
    return marks


def _is_mark_row(row: Mapping[str, Any], tier: str) -> bool:
    return (row["tier"], row["height_px"], row["width_px"], row["steps"]) == (tier, 512, 512, 1)


def _mark(name: str, target: str, measured: str | None, passed: bool) -> Mark:
    if measured is None:
        return Mark(name=name, target=target, measured="not measured", passed=None)
    return Mark(name=name, target=target, measured=measured, passed=passed)

"""The ladder as Markdown: one row for each rung and set, what each stage loses against the gates, cost and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from photonstep.export.gates import GATES

from .rungs import LOOP, STAGES, TEACHER_STEPS
from .summary import Group, groups, interval_95
from .tables import machine_line

if TYPE_CHECKING:
    from .ladder import LadderRow

Rows = Sequence["LadderRow"]


def render(document: Mapping[str, Any], rows: Rows) -> str:
    """The whole report."""
    best = best_teacher(rows)
    parts = ["# The ladder: teacher, distilled, pruned, INT8", machine_line(document)]
    if best is not None:
        parts.append(f"The teacher's best K, chosen on the `val` splits alone: {_title(document, best)}.")
    parts += [quality_table(document, rows), "## What each stage loses", stages_table(document, rows, best)]
    parts += ["## Cost", cost_table(document)]
    failed = [row for row in rows if row.error]
    parts += [f"Not restored: {row.frame} by {row.method} ({row.error})." for row in failed]
    return "\n\n".join(part for part in parts if part) + "\n"


def best_teacher(rows: Rows) -> str | None:
    """The teacher's K with the highest mean PSNR over the ``val`` sets, every set with the same weight."""
    means: dict[str, float] = {}
    for name in (f"teacher_k{k}" for k in TEACHER_STEPS):
        by_set = [
            float(np.mean([r.psnr_db for r in g.rows(rows, name) if r.psnr_db is not None]))
            for g in groups(rows)
            if g.split == "val" and g.modality is None and any(r.psnr_db is not None for r in g.rows(rows, name))
        ]
        if by_set:
            means[name] = float(np.mean(by_set))
    return max(means, key=means.__getitem__) if means else None


def losses(rows: Rows, group: Group, above: str, below: str) -> dict[str, Any] | None:
    """What a rung loses against the one above it on the images that both restored; None where there are none."""
    upper = {r.frame: r for r in group.rows(rows, above) if r.psnr_db is not None}
    pairs = [(upper[r.frame], r) for r in group.rows(rows, below) if r.frame in upper and r.psnr_db is not None]
    if not pairs:
        return None
    psnr = np.array([a.psnr_db - b.psnr_db for a, b in pairs], dtype=np.float64)
    bias = [_mean_bias([side[i] for side in pairs]) for i in (0, 1)]
    return {
        "psnr_db": float(psnr.mean()),
        "psnr_95": interval_95(psnr, [b.field for _, b in pairs]),
        "ssim": float(np.mean([a.ssim - b.ssim for a, b in pairs])),
        "bias_percent": abs(bias[1]) - abs(bias[0]),
        "images": len(pairs),
    }


def quality_table(document: Mapping[str, Any], rows: Rows) -> str:
    """PSNR / SSIM / photon bias of every rung on every set."""
    shown = groups(rows)
    lines = ["| | " + " | ".join(g.title for g in shown) + " |", "| --- |" + " --- |" * len(shown)]
    for rung in document["rungs"]:
        cells = [_cell([r for r in g.rows(rows, rung["name"]) if r.psnr_db is not None]) for g in shown]
        lines.append(f"| {rung['title']} | " + " | ".join(cells) + " |")
    note = "PSNR in dB / SSIM / restored light beyond the measured one, mean over the images."
    limited = [r for r in document["rungs"] if r["limit"] is not None]
    note += "".join(
        f" **{r['title']}: only the first {r['limit']} frames of each set and split**; its means do not compare with "
        "the other rows, the losses below are over the same images." for r in limited
    )  # fmt: skip
    return f"{note}\n\n" + "\n".join(lines)


def stages_table(document: Mapping[str, Any], rows: Rows, best: str | None) -> str:
    """Losses of every stage and of all together, set by set, against the gates."""
    present = [rung["name"] for rung in document["rungs"]]
    chain = [name for name in (best, *STAGES) if name in present]
    steps = [(above, below, "stage") for above, below in pairwise(chain)]
    steps += [(chain[0], chain[-1], "total")] if len(chain) > 1 else []
    steps += [(LOOP, name, "") for name in (best, *chain[-1:]) if name is not None and LOOP in present]
    lines = [
        "| from | to | set | images | PSNR loss, dB | 95 % over fields | SSIM loss | added photon bias, % | gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for above, below, gate in dict.fromkeys(steps):
        for group in groups(rows):
            loss = losses(rows, group, above, below)
            if loss is not None:
                interval = "" if loss["psnr_95"] is None else "{:+.3f} to {:+.3f}".format(*loss["psnr_95"])
                lines.append(
                    f"| {_title(document, above)} | {_title(document, below)} | {group.title} | {loss['images']} | "
                    f"{loss['psnr_db']:+.3f} | {interval} | {loss['ssim']:+.4f} | {loss['bias_percent']:+.2f} | "
                    f"{_verdict(loss, gate)} |"
                )
    stage, total = GATES["stage"], GATES["total"]
    note = (
        f"Gates: {stage.psnr_loss_db:g} dB a stage, {total.psnr_loss_db:g} dB in total, SSIM {stage.ssim_loss:g}, "
        f"photon bias {stage.photon_bias_percent:g} %. Against the 50-step loop there is no gate: it is the baseline."
    )
    return f"{note}\n\n" + "\n".join(lines)


def cost_table(document: Mapping[str, Any]) -> str:
    """MACs, bytes and, where it was timed, milliseconds."""
    speed = document.get("speed")
    times = speed["rungs"] if speed else {}
    lines = [
        "| | backend | precision | kMAC per px | GMAC per 512x512 frame | network, MB | median ms | times faster |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    slowest = times.get(LOOP, {}).get("median_ms")
    for rung in document["rungs"]:
        ms = times.get(rung["name"], {}).get("median_ms")
        faster = "" if ms is None or slowest is None else f"{slowest / ms:.0f}"
        lines.append(
            f"| {rung['title']} | {rung['backend']} | {rung['precision']} | {rung['kmac_per_px']:.1f} | "
            f"{rung['kmac_per_px'] * 512**2 / 1e6:.1f} | {rung['bytes'] / 1e6:.2f} | "
            f"{'' if ms is None else f'{ms:.1f}'} | {faster} |"
        )
    note = "Times were not measured."
    if speed:
        side = speed["side_px"]
        note = (
            f"Times: {side}x{side} uint16 in to uint16 out, camera given, {speed['threads']} CPU threads, all in turn "
            "within one run. Faster: than the loop."
        )
    return f"{note}\n\n" + "\n".join(lines)


def _cell(rows: Rows) -> str:
    if not rows:
        return "not measured"
    psnr, ssim = (float(np.mean([getattr(r, name) for r in rows])) for name in ("psnr_db", "ssim"))
    return f"{psnr:.2f} / {ssim:.3f} / {_mean_bias(rows):+.2f} %"


def _mean_bias(rows: Rows) -> float:
    return float(np.mean([r.bias_percent for r in rows if r.bias_percent is not None]))


def _verdict(loss: Mapping[str, Any], gate: str) -> str:
    if not gate:
        return ""
    limits = GATES[gate]
    missed = [
        name
        for name, value, limit in (
            ("PSNR", loss["psnr_db"], limits.psnr_loss_db),
            ("SSIM", loss["ssim"], limits.ssim_loss),
            ("bias", loss["bias_percent"], limits.photon_bias_percent),
        )
        if not value <= limit
    ]
    return f"{gate}: **missed** ({', '.join(missed)})" if missed else f"{gate}: passed"


def _title(document: Mapping[str, Any], name: str) -> str:
    return str(next(rung["title"] for rung in document["rungs"] if rung["name"] == name))

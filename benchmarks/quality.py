"""Quality on real frames: single raw frame in, blind, against its reference; peers and photonstep side by side.

    python -m benchmarks.quality --data ../shared/data

Every method gets the same `Camera.estimate` of that one frame; the oracle rows get the camera of the ground truth
instead. Afterwards come the times of all methods, the photon bias, the speed, and the marks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import photonstep as ps
from photonstep.runtime.errors import PhotonstepError

from . import baselines, bias, datasets, machine, oracle, speed, tables
from .datasets import SETS, Pair
from .methods import CameraKind, Method, build, recipes, select
from .summary import Row

SAVE_EVERY_S = 30.0
FAST_ROUNDS, SLOW_ROUNDS = 20, 2  # timing: rivals that a live loop could use, and those that take seconds
SLOW = ("nlm", "tv", "wavelet", "bm3d")


Cameras = dict[CameraKind, ps.Camera | PhotonstepError | None]


def cameras_of(pair: Pair, methods: Sequence[Method]) -> Cameras:
    """The cameras that the methods ask for; an error stands where none could be had, and fails those methods."""
    cameras: Cameras = {"none": None}
    for kind in dict.fromkeys(method.camera for method in methods if method.camera != "none"):
        try:
            cameras[kind] = oracle.fit_camera(pair) if kind == "oracle" else ps.Camera.estimate(pair.frame)
        except PhotonstepError as error:
            cameras[kind] = error
    return cameras


def measure_pair(
    pair: Pair, methods: Sequence[Method], cameras: Cameras, cached: dict[tuple[str, str], Row]
) -> Iterator[Row]:
    """Restore and score one frame with every method, taking what is cached with the same settings and camera."""
    for method in methods:
        camera = cameras[method.camera]
        mark = fingerprint(method, camera)
        known = cached.get((pair.key, method.name))
        yield known if known and known.fingerprint == mark else _score(pair, method, camera, mark)


def fingerprint(method: Method, camera: object) -> str:
    """What a figure depends on besides the frame: a resumed run recomputes it when this changed."""
    return hashlib.sha256(f"{method.name} {method.settings} {camera!r}".encode()).hexdigest()[:16]


def timing(methods: Sequence[Method], pair: Pair, threads: int) -> dict[str, Any]:
    """Median time of every method on one frame, camera given; live rivals in turn within one run."""
    camera = ps.Camera.estimate(pair.frame)
    runs: dict[str, Callable[[], object]] = {}
    z = camera.stabilise(pair.frame)
    scaled = ((z - z.min()) / np.ptp(z)).astype(np.float32)
    for method in methods:
        if method.camera == "blind":
            runs[method.name] = partial(method, pair.frame, camera)
        if isinstance(method.restore, baselines.OpenImageDenoise):
            runs[f"{method.name}_filter_only"] = partial(method.restore.execute, scaled)
    fast = {name: run for name, run in runs.items() if name not in SLOW}
    slow = {name: run for name, run in runs.items() if name in SLOW}
    shape = "x".join(map(str, pair.frame.shape))
    note = (
        f"{shape} frame in to frame out, camera given, {threads} CPU threads. Open Image Denoise and photonstep take "
        f"turns within one run; scikit-image's filters run on one thread."
    )
    measured = speed.alternate(fast, rounds=FAST_ROUNDS) | speed.alternate(slow, rounds=SLOW_ROUNDS)
    return {"note": note, "frame": pair.key, "methods": measured}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; the document is saved as it grows."""
    wanted = select(recipes(base=options.base, live=options.live, threads=options.threads), options.methods)
    methods, not_measured = build(wanted)
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.quality", *options.arguments]),
        "machine": machine.record(),
        "settings": {"limit": options.limit, "threads": options.threads},
        "titles": {recipe.name: recipe.title for recipe in wanted},
        "not_measured": not_measured,
        "rows": [],
    }
    previous = _load(options.json) if options.resume else {}
    document["titles"] = _ordered(previous.get("titles", {}) | document["titles"])
    document["cameras"] = previous.get("cameras", {})
    document |= {part: previous[part] for part in options.skip if part in previous}
    rows = {(row["frame"], row["method"]): Row(**row) for row in previous.get("rows", [])}
    try:
        _measure(options, methods, document, rows)
    finally:  # also what an interrupted run has
        document["rows"] = [row.as_dict() for row in rows.values()]
        _save(options.json, document)
    _extras(options, methods, document)
    _save(options.json, document)
    return document


def _measure(
    options: argparse.Namespace,
    methods: Sequence[Method],
    document: dict[str, Any],
    rows: dict[tuple[str, str], Row],
) -> None:
    """All selected frames; ``rows`` holds what earlier runs measured and takes what this one does."""
    saved = time.monotonic()
    for pair in _selected(options):
        cameras = cameras_of(pair, methods)
        document["cameras"][pair.key] = {k: _camera_facts(c) for k, c in cameras.items() if c is not None}
        for row in measure_pair(pair, methods, cameras, rows):
            if row is not rows.get((row.frame, row.method)):
                _progress(row)
            rows[row.frame, row.method] = row
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(options.json, document | {"rows": [row.as_dict() for row in rows.values()]})
            saved = time.monotonic()


def _extras(options: argparse.Namespace, methods: Sequence[Method], document: dict[str, Any]) -> None:
    """Time, bias and speed: what the marks need besides the images."""
    loaded = {method.name for method in methods}
    if "timing" not in options.skip:
        document["timing"] = timing(methods, next(iter(_selected(options))), options.threads)
    tiers = {tier: getattr(options, tier) for tier in ("base", "live") if f"{tier}_k1" in loaded}
    if "bias" not in options.skip and tiers:
        document["bias"] = bias.measure({tier: ps.load(bundle, device="cpu") for tier, bundle in tiers.items()})
    if "speed" not in options.skip and tiers:
        document["speed"] = speed.measure(tiers, threads=options.threads)


def _selected(options: argparse.Namespace) -> Iterator[Pair]:
    for set_name in options.sets:
        for split in SETS[set_name].splits:
            if split in options.splits:
                yield from datasets.pairs(options.data, set_name, split, options.limit)


def _score(pair: Pair, method: Method, camera: ps.Camera | PhotonstepError | None, mark: str) -> Row:
    psnr_db: float | None = None
    ssim: float | None = None
    message: str | None = None
    start = time.perf_counter()
    try:
        if isinstance(camera, PhotonstepError):
            raise camera
        image = method(pair.frame, camera)
        seconds = time.perf_counter() - start
        psnr_db, ssim = datasets.score(pair, image)
    except PhotonstepError as error:
        seconds = time.perf_counter() - start
        message = str(error)
    return Row(
        frame=pair.key,
        set_name=pair.set_name,
        split=pair.split,
        field=pair.field,
        modality=pair.modality,
        method=method.name,
        psnr_db=psnr_db,
        ssim=ssim,
        seconds=seconds,
        fingerprint=mark,
        error=message,
    )


def _load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _ordered(titles: dict[str, str]) -> dict[str, str]:
    """Titles in the order of the table, whatever run measured them first."""
    return {recipe.name: titles[recipe.name] for recipe in recipes() if recipe.name in titles}


def _camera_facts(camera: ps.Camera | PhotonstepError) -> dict[str, Any]:
    return {"error": str(camera)} if isinstance(camera, PhotonstepError) else camera.summary()


def _save(path: Path | None, document: dict[str, Any]) -> None:
    if path is None:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _progress(row: Row) -> None:
    figures = row.error if row.psnr_db is None else f"{row.psnr_db:6.2f} dB {row.ssim:.3f}"
    print(f"{row.frame:40s} {row.method:16s} {figures} {row.seconds:6.2f} s", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds paired/")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--splits", nargs="+", choices=("val", "test"), default=["val", "test"])
    parser.add_argument(
        "--methods", nargs="+", help="names, or their first words: raw gaussian oidn base_k1 (default all)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N frames per set and split")
    parser.add_argument("--base", default="base", help="bundle, by name or path")
    parser.add_argument("--live", default="live", help="bundle, by name or path")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of photonstep and Open Image Denoise")
    parser.add_argument("--skip", nargs="+", choices=("timing", "bias", "speed"), default=[])
    parser.add_argument("--json", type=Path, metavar="FILE", help="every per-image figure, saved as the run goes")
    parser.add_argument("--resume", action="store_true", help="take what FILE has already measured the same way")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)
    if options.resume and options.json is None:
        parser.error("--resume needs --json FILE: the file that an earlier run wrote")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    report = tables.render(run(options))
    print(report)
    if options.markdown:
        options.markdown.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()

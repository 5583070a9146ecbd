"""Restore every image of a folder from Python: what ``photonstep restore`` does, in one screen.

    python examples/restore_folder.py my_frames -o restored

Without a folder it takes the frame of the demo. Planes are read, restored and written one at a time, so a stack may be
larger than memory; axes, dtype, pixel size and metadata are kept, and a copy appears under its name only when complete.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import photonstep as ps
from photonstep.demo import DEMO_FRAME
from photonstep.runtime.images import ImageWriter, is_image_path, open_image


def main() -> None:
    parser = argparse.ArgumentParser(description="restore every image of a folder")
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO_FRAME.parent)
    parser.add_argument("-o", "--output", type=Path, default=Path("restored"))
    parser.add_argument("--camera", type=Path, help="camera.json; without it every file's camera is estimated")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    restorer = ps.load("base")
    camera = ps.Camera.load(arguments.camera) if arguments.camera else None
    for source in sorted(path for path in arguments.folder.iterdir() if is_image_path(path)):
        try:
            flags = restore_file(source, arguments.output / source.name, restorer, camera)
        except ps.PhotonstepError as error:  # says what, what it got, what it expected and what to do next
            print(f"{source.name}: skipped: {error}")
        else:
            print(f"{source.name}: written; flags by planes: {dict(flags) or 'none'}")


def restore_file(source: Path, target: Path, restorer: ps.Restorer, camera: ps.Camera | None) -> Counter[str]:
    """Restore one file plane by plane; returns how many planes raised each flag.

    Raises
    ------
    ImageError : the file cannot be read, or the target exists already
    """
    flags: Counter[str] = Counter()
    with open_image(source) as reader:
        if camera is None:
            # one camera for the whole file: planes that each estimated their own would flicker
            camera = ps.Camera.estimate(next(plane for _, plane in reader.planes()))
        tracker = restorer.tracker()  # and one memory of brightness
        record = {"bundle_sha256": restorer.bundle.sha256, "camera": camera.summary(), "steps": 1}
        with ImageWriter(target, like=reader, provenance=record) as writer:
            for _, plane in reader.planes():
                result = restorer.restore(plane, camera=camera, steps=1, tracker=tracker)
                writer.write(result.image)
                flags.update(result.flags)
    return flags


if __name__ == "__main__":
    main()

"""A bundle as a BioImage Model Zoo package: complete, the same pixels, and accepted by bioimageio's own tools.

bioimageio.core wants an older pydantic than photonstep may have, so its tools run in an environment of their own:

    python -m venv /tmp/bioimageio
    /tmp/bioimageio/bin/python -m pip install 'bioimageio.core==0.11.*' 'bioimageio.spec==0.5.12.*' 'pydantic<2.14' \\
        onnxruntime
    PHOTONSTEP_BIOIMAGEIO_PYTHON=/tmp/bioimageio/bin/python python -m pytest tests/test_bioimageio.py
"""

import hashlib
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import photonstep as ps
from photonstep import BundleError, CameraError
from photonstep.export.bioimageio import write
from photonstep.runtime.bundle import write_bundle

VARIABLE = "PHOTONSTEP_BIOIMAGEIO_PYTHON"
CHECK = Path(__file__).parent / "bioimageio_check.py"
CAMERA = ps.Camera(offset_adu=2.0, gain_e_per_adu=0.46, readout_noise_e=1.6, noise_correlation=(0.2, 0.0))


@pytest.fixture(scope="module")
def package(framed_bundle, tmp_path_factory):
    return write(framed_bundle, tmp_path_factory.mktemp("zoo") / "package.zip", camera=CAMERA)


@pytest.fixture(scope="module")
def files(package):
    with zipfile.ZipFile(package) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def restored(framed_bundle):
    restorer = ps.load(framed_bundle, backend="onnxruntime", precision="fp32", threads=1)
    yield lambda frame: restorer(frame, camera=CAMERA, steps=1)
    restorer.close()


def array(content):
    return np.load(io.BytesIO(content))


def fields_of(bundle):
    fields = json.loads(bundle.manifest.to_json())
    for computed in ("format", "format_version", "members"):
        del fields[computed]
    return fields, {name: bundle.read(name) for name in bundle.members if name != "manifest.json"}


def test_the_description_names_every_file_with_its_hash(files, framed_bundle):
    description = json.loads(files["bioimageio.yaml"])
    assert next(iter(files)) == "bioimageio.yaml"
    named = {}

    def look(node):
        if isinstance(node, dict):
            if "source" in node and "sha256" in node:
                named[node["source"]] = node["sha256"]
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(description)
    assert named == {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "bioimageio.yaml"}
    assert description["license"] == framed_bundle.manifest.licence
    assert description["config"]["photonstep"]["camera"]["gain_e_per_adu"] == pytest.approx(0.46)
    assert description["authors"]
    assert description["cite"]
    assert "# Validation" in files["README.md"].decode()


def test_weights_and_test_tensors_agree_with_the_runtime(files, framed_bundle, restored):
    frame = framed_bundle.read_array(framed_bundle.manifest.test_frame.input)
    np.testing.assert_array_equal(array(files["test_input.npy"])[0, 0], frame)
    session = onnxruntime.InferenceSession(files["weights.onnx"], providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["raw"]
    [image] = session.run(["denoised"], {"raw": frame[None, None]})
    assert image.dtype == np.uint16
    assert image.std() > 5  # there is something to compare
    for expected in (image, array(files["test_output.npy"])):
        assert np.abs(expected[0, 0].astype(int) - restored(frame)).max() <= 1


def test_the_cover_shows_two_squares(files):
    with Image.open(io.BytesIO(files["cover.png"])) as cover:
        grey = np.asarray(cover)
    assert grey.shape == (256, 512)
    raw, restored = grey[:, :256], grey[:, 256:]
    assert restored.std() > 10
    assert np.diff(raw.astype(float)).std() > 2 * np.diff(restored.astype(float)).std()  # noise is gone


def test_the_same_bytes_every_time(package, framed_bundle, tmp_path):
    again = write(framed_bundle, tmp_path / "again.zip", camera=CAMERA)
    assert again.read_bytes() == package.read_bytes()


def test_what_cannot_be_a_package_is_refused(framed_bundle, tmp_path):
    (tmp_path / "there.zip").write_bytes(b"precious")
    with pytest.raises(BundleError, match="exists"):
        write(framed_bundle, tmp_path / "there.zip")
    assert (tmp_path / "there.zip").read_bytes() == b"precious"
    with pytest.raises(BundleError, match=r"does not end in \.zip"):
        write(framed_bundle, tmp_path / "package.tar")
    with pytest.raises(CameraError, match="maps"):
        write(framed_bundle, tmp_path / "maps.zip", camera=ps.Camera(offset_adu=np.full((32, 32), 100, np.float32)))
    fields, members = fields_of(framed_bundle)
    for array_of in fields.pop("test_frame").values():
        if isinstance(array_of, dict):
            members.pop(array_of.get("member"), None)
    untested = write_bundle(tmp_path / "untested.photonstep", fields, members)
    with pytest.raises(BundleError, match="no test frame"):
        write(untested, tmp_path / "untested.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"there.zip", "untested.photonstep"}


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no Python with bioimageio.core")
@pytest.mark.parametrize(("steps", "scale", "licence"), [(1, 1, "MIT"), (2, 2, "MIT AND CC-BY-4.0")])
def test_bioimageio_accepts_and_runs_it(framed_bundle, lysosome, tmp_path, steps, scale, licence):
    fields, members = fields_of(framed_bundle)
    fields |= {"licence": licence, "scale": scale, "task": ["denoise", "super_resolution"][scale - 1]}
    if scale == 2:  # the live network on the fine grid, which it was not trained for
        members = {name: content for name, content in members.items() if not name.startswith("frame_")}
        expected = fields["test_frame"]["expected"]
        expected["shape"] = [2 * side for side in expected["shape"]]
        members[expected["member"]] = bytes(2 * expected["shape"][0] * expected["shape"][1])
        fields["frame_graphs"] = []
    bundle = write_bundle(tmp_path / "bundle.photonstep", fields, members)
    package = write(bundle, tmp_path / "package.zip", camera=CAMERA, steps=steps)
    frame = np.ascontiguousarray(lysosome[:101, :93])
    np.save(tmp_path / "frame.npy", frame)
    done = subprocess.run(
        [os.environ[VARIABLE], CHECK, package, tmp_path / "frame.npy", tmp_path / "restored.npy"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["valid"], said["summary"]
    assert said["status"] == "passed", said["tested"]
    image = np.load(tmp_path / "restored.npy")
    restorer = ps.load(bundle, backend="onnxruntime", precision="fp32", threads=1)
    wanted = restorer(frame, camera=CAMERA, steps=steps)
    restorer.close()
    assert image.dtype == np.uint16
    assert image.shape == wanted.shape == (scale * 101, scale * 93)
    assert np.abs(image.astype(int) - wanted).max() <= 1

"""The C++ example, built as docs/embedding.md says: it restores as Python does, and says what is wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest

import photonstep as ps

REPOSITORY = Path(__file__).resolve().parent.parent
CPP = REPOSITORY / "examples" / "cpp"
OPENVINO = Path(openvino.__file__).parent
CAMERA = ps.Camera(offset_adu=2.0, gain_e_per_adu=0.46, readout_noise_e=1.6, noise_correlation=(0.2, 0.1))
NUMBERS = ("2", "0.46", "1.6", "0.2", "0.1")
BUILDS = {
    "g++": [re.search(r"^g\+\+ .*$", (REPOSITORY / "docs" / "embedding.md").read_text(), re.MULTILINE)[0]],
    "cmake": ['cmake -S examples/cpp -B "$BUILD" -DOpenVINO_DIR=$OV/cmake', 'cmake --build "$BUILD" --config Release'],
}

if not sys.platform.startswith("linux"):
    pytest.skip("the build line of docs/embedding.md is for Linux", allow_module_level=True)
if not (OPENVINO / "include").is_dir():
    pytest.skip(f"no C++ headers of OpenVINO at {OPENVINO / 'include'}", allow_module_level=True)


@pytest.fixture(scope="module", params=BUILDS)
def program(request, tmp_path_factory):
    needed = [request.param] if request.param == "g++" else ["cmake", "c++"]
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this machine")
    folder = tmp_path_factory.mktemp("cpp")
    environment = {**os.environ, "OV": str(OPENVINO), "BUILD": str(folder)}
    for line in BUILDS[request.param]:
        line = line.replace("-o restore_frame", '-o "$BUILD/restore_frame"')
        done = subprocess.run(
            ["bash", "-c", line], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    return folder / "restore_frame"


@pytest.fixture(scope="module")
def graph(framed_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "frame_1.onnx"
    path.write_bytes(framed_bundle.frame_graph(1))
    return path


@pytest.fixture(scope="module")
def restored(framed_bundle):
    restorer = ps.load(framed_bundle, backend="onnxruntime", precision="fp32", threads=1)
    yield lambda frame: restorer(frame, camera=CAMERA, steps=1)
    restorer.close()


def pgm(frame, full=None, comment=""):
    full = full or np.iinfo(frame.dtype).max
    height, width = frame.shape
    return f"P5\n{comment}{width} {height}\n{full}\n".encode() + frame.astype(frame.dtype.newbyteorder(">")).tobytes()


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("dtype", "comment"), [(np.uint16, ""), (np.uint8, "# from a camera\n# 8 bit\n")])
def test_it_restores_as_python_does(program, graph, restored, lysosome, confocal, tmp_path, dtype, comment):
    frame = lysosome[:101, :93] if dtype == np.uint16 else confocal.raw[:70, :131]
    (tmp_path / "raw.pgm").write_bytes(pgm(frame, comment=comment))
    done = run(program, graph, tmp_path / "raw.pgm", tmp_path / "restored.pgm", *NUMBERS)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "restored.pgm").read_bytes()
    header = f"P5\n{frame.shape[1]} {frame.shape[0]}\n65535\n".encode()
    assert content.startswith(header)
    image = np.frombuffer(content[len(header) :], ">u2").reshape(frame.shape)
    assert image.std() > 5  # there is something to compare
    assert np.abs(image.astype(int) - restored(frame.astype(np.uint16)).astype(int)).max() <= 1


FRAME = np.full((20, 30), 200, np.uint16)


@pytest.mark.parametrize(
    ("content", "numbers", "says"),
    [
        (None, NUMBERS, "cannot be opened"),
        (b"II*\0", NUMBERS, "not a binary PGM"),
        (b"P5\n30 x\n", NUMBERS, "no height"),
        (b"P5\n99999999999999999999 20\n255\n", NUMBERS, "no width"),
        (b"P5\n30 8193\n65535\n", NUMBERS, "30x8193 px; expected 16 to 8192"),
        (pgm(FRAME, full=70000), NUMBERS, "largest value 70000"),
        (pgm(FRAME)[:-3], NUMBERS, "1197 bytes of pixels; expected 1200"),
        (pgm(FRAME), ("100", "zero", "1.6"), "GAIN_E_PER_ADU is 'zero'"),
        (pgm(FRAME), ("100", "0", "1.6"), "GAIN_E_PER_ADU is '0'"),
        (pgm(FRAME), ("100", "nan", "1.6"), "GAIN_E_PER_ADU is 'nan'"),
        (pgm(FRAME), ("100", "1"), "usage: "),
    ],
)
def test_it_says_what_is_wrong(program, graph, tmp_path, content, numbers, says):
    if content is not None:
        (tmp_path / "raw.pgm").write_bytes(content)
    done = run(program, graph, tmp_path / "raw.pgm", tmp_path / "restored.pgm", *numbers)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert not (tmp_path / "restored.pgm").exists()


def test_it_overwrites_nothing_and_refuses_other_graphs(program, graph, framed_bundle, tmp_path):
    (tmp_path / "raw.pgm").write_bytes(pgm(FRAME))
    (tmp_path / "restored.pgm").write_bytes(b"precious")
    done = run(program, graph, tmp_path / "raw.pgm", tmp_path / "restored.pgm", *NUMBERS)
    assert "exists" in done.stderr
    assert (tmp_path / "restored.pgm").read_bytes() == b"precious"
    (tmp_path / "step.onnx").write_bytes(framed_bundle.network("fp32"))
    done = run(program, tmp_path / "step.onnx", tmp_path / "raw.pgm", tmp_path / "new.pgm", *NUMBERS)
    assert done.returncode == 1
    assert "frame" in done.stderr

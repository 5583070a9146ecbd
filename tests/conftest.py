"""Real frames and the default bundle, loaded once; where they come from is in ``tests/data/README.md``."""

import json
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import native_library
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import photonstep as ps

DATA = Path(__file__).resolve().parent / "data"
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# The same examples on every run; look further with --hypothesis-profile=explore. A busy machine is no failure.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")

# Before a test or another conftest can load it. An installed photonstep has its own library, or none on purpose.
IS_CHECKOUT = Path(ps.__file__).resolve().parents[1] == native_library.ROOT
BUILD_FAILURE = native_library.build() if IS_CHECKOUT else ""


def pytest_report_header():
    from photonstep.kernels import native

    failure = f"; a build from the sources as they are now failed: {BUILD_FAILURE}" if BUILD_FAILURE else ""
    try:
        return f"kernels: {native.describe()}{failure}"
    except native.KernelError as error:
        return f"kernels: {error}{failure}"


@dataclass(frozen=True)
class Pair:
    """One raw capture and the mean of 50 captures of the same field, (H, W) uint8 each, ADU."""

    raw: NDArray[np.uint8]
    reference: NDArray[np.uint8]


def read_pair(name: str) -> Pair:
    raw, reference = tifffile.imread(DATA / f"{name}.tif")
    return Pair(_read_only(raw), _read_only(reference))


def _read_only(image):
    frozen = np.array(image)
    frozen.flags.writeable = False
    return frozen


@pytest.fixture(scope="session")
def confocal():
    """256x256, noise nearly white."""
    return read_pair("confocal")


@pytest.fixture(scope="session")
def two_photon():
    """192x192, noise nearly white."""
    return read_pair("two_photon")


@pytest.fixture(scope="session")
def widefield():
    """192x192, noise with a lag-1 correlation of about 0.6."""
    return read_pair("widefield")


@pytest.fixture(scope="session")
def lysosome():
    """(128, 128) uint16: real structure with little noise, to simulate cameras on."""
    return _read_only(tifffile.imread(DATA / "lysosome.tif"))


@pytest.fixture(scope="session")
def restorer():
    """The default bundle in float32 on one thread: the same pixels on every machine of a kind."""
    opened = ps.load("base", device="cpu", backend="openvino", precision="fp32", threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def framed_bundle(tmp_path_factory):
    """The live bundle with frame graphs of 1 and 2 steps, whether or not it was shipped with any."""
    from photonstep.export.frame_graph import add_frame_graphs
    from photonstep.runtime.bundle import Bundle, write_bundle
    from photonstep.runtime.restore import find_bundle

    shipped = Bundle.load(find_bundle("live"))
    fields = json.loads(shipped.manifest.to_json())
    for computed in ("format", "format_version", "members"):
        del fields[computed]
    members = {name: shipped.read(name) for name in shipped.members if name != "manifest.json"}
    for graph in fields.pop("frame_graphs", []):
        del members[graph["member"]]
    add_frame_graphs(fields, members, steps=(1, 2))
    return write_bundle(tmp_path_factory.mktemp("framed") / "framed.photonstep", fields, members)


@pytest.fixture
def single_threaded_torch():
    """Sums in one order, and no threads that wait for one another over a handful of numbers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data():
    """The measured sets beside the repository; they are not part of it."""
    if not (SHARED_DATA / "paired").is_dir():
        pytest.skip("../shared/data is not here; it holds the full sets that these frames were cut from")
    return SHARED_DATA

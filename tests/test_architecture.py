"""The rooms and the arrow between them, and a runtime that needs neither torch nor anything of the training side."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARROW = ("photonstep", "integrations", "export", "models", "runtime", "kernels")  # each may import what is to its right
TRAINING_ONLY = ("torch", "onnx", "onnxscript", "scipy", "skimage", "matplotlib")
TRAINING_ROOMS = {"models", "export"}
EXTRAS = {"onnxruntime": {"runtime", "export"}, **dict.fromkeys(TRAINING_ONLY, TRAINING_ROOMS)}


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


ALL = [path for room in ARROW for path in modules(room)]


def absolute(node, package):
    """Dotted name that an import statement stands for; ``package`` is the importing module's package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    origin = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{origin}.{alias.name}" for alias in node.names]


def imports(path):
    """Every import in a file, wherever it stands, as (line, dotted name)."""
    room, *folders = path.relative_to(ROOT).parent.parts
    package = ["photonstep", *([] if room == "photonstep" else [room]), *folders]
    tree = ast.parse(path.read_text(), str(path))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [(node.lineno, name) for node in nodes for name in absolute(node, package)]


def room_of(name):
    """The room that a dotted name belongs to, or None for other people's packages."""
    first, *rest = name.split(".")
    if first != "photonstep":
        return None
    return rest[0] if rest and rest[0] in ARROW else "photonstep"


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_to_its_right(path):
    room = path.relative_to(ROOT).parts[0]
    for line, name in imports(path):
        target = room_of(name)
        if target is None or target == room:
            continue
        assert ARROW.index(target) > ARROW.index(room), f"{path.name}:{line} imports {name}, against the arrow"


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_rooms(path):
    room = path.relative_to(ROOT).parts[0]
    for line, name in imports(path):
        allowed = EXTRAS.get(name.split(".")[0])
        assert allowed is None or room in allowed, f"{path.name}:{line} imports {name}"


def test_the_checks_see_what_they_look_for(tmp_path, monkeypatch):
    """The two tests above, on a tree that breaks the rules."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    bad = tmp_path / "kernels" / "bad.py"
    for text in (
        "from ..runtime import camera",
        "import photonstep.models.data",
        "from .. import runtime",
        "def f():\n from ..export.onnx import x",
    ):
        bad.write_text(text)
        with pytest.raises(AssertionError, match="against the arrow"):
            test_a_room_imports_only_from_rooms_to_its_right(bad)
    for text in ("import torch", "from onnx import load", "def f():\n import scipy.ndimage"):
        bad.write_text(text)
        with pytest.raises(AssertionError, match="imports"):
            test_heavy_packages_stay_in_their_rooms(bad)


def test_every_room_is_installed():
    """setup.py names every folder that holds modules; one that it forgot would work in the checkout only."""
    named = (ROOT / "setup.py").read_text()
    for path in ALL:
        folder = path.parent.relative_to(ROOT)
        if folder.parts[0] != "photonstep":
            assert folder.parts[0] in named
            assert len(folder.parts) == 1 or f"{folder.parts[0]}/{folder.parts[1]}" in named


def test_no_file_is_too_long_to_read():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in ALL}
    assert {name: n for name, n in lengths.items() if n > 420} == {}


# --- without the training side ---

BLOCKED = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    names = {names}

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            raise ImportError(fullname + " is blocked in this test")
        return None

sys.meta_path.insert(0, Blocked())
"""
WITHOUT = BLOCKED.format(names={*TRAINING_ONLY, "onnxruntime", "pandas", "IPython"})


def run_python(code, *, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def result_of(code):
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_blocks():
    done = run_python(WITHOUT + "import torch")
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr


def test_a_frame_is_restored_without_the_training_side():
    code = (
        WITHOUT
        + """
import warnings; warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
import numpy as np
import photonstep as ps
frame = np.random.default_rng(0).poisson(20, (64, 80)).astype(np.uint16) + 100
restorer = ps.load("base", threads=1)
result = restorer.restore(frame, steps=2, report=True)
assert result.image.shape == frame.shape and result.image.dtype == frame.dtype
assert result.image.std() < 0.5 * frame.std()
print(restorer.backend_name, sorted({name.split(".")[0] for name in sys.modules} & Blocked.names))
"""
    )
    assert result_of(code).split("\n")[0] == "openvino []"


@pytest.mark.parametrize("arguments", [["--help"], ["info", "base"], ["doctor"], ["restore", "--help"]], ids=" ".join)
def test_the_command_line_works_without_the_training_side(arguments):
    code = (
        WITHOUT
        + f"""
import warnings; warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
sys.argv = ["photonstep", *{arguments!r}]
from photonstep.cli import main
main()
"""
    )
    out = result_of(code)
    assert {"--help": "restore", "info": "base", "doctor": "openvino", "restore": "--overwrite"}[arguments[0]] in out


def test_the_missing_backend_is_named_when_asked_for():
    code = (
        WITHOUT
        + """
import warnings; warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
import photonstep as ps
try:
    ps.load("base", backend="onnxruntime")
except ps.BackendError as error:
    print(error)
"""
    )
    assert "photonstep[ort]" in result_of(code)


def test_importing_photonstep_costs_next_to_nothing():
    code = "import json, sys, photonstep; print(json.dumps([n.split('.')[0] for n in sys.modules]))"
    loaded = set(json.loads(result_of(code)))
    assert not loaded & {"numpy", "openvino", "pydantic", "tifffile", "typer", "PIL", *TRAINING_ONLY, "onnxruntime"}


def test_importing_the_runtime_needs_numpy_and_pydantic_only():
    code = "import json, sys, photonstep.runtime.restore; print(json.dumps([n.split('.')[0] for n in sys.modules]))"
    loaded = set(json.loads(result_of(code)))
    assert "numpy" in loaded
    assert not loaded & {"openvino", "tifffile", "typer", "PIL", *TRAINING_ONLY, "onnxruntime"}


def test_public_names_are_there_and_no_others():
    code = """
import photonstep as ps
assert all(getattr(ps, name) is not None for name in ps.__all__)
assert dir(ps) == sorted(ps.__all__)
try:
    ps.loda
except AttributeError as error:
    print(error)
"""
    assert "'loda'" in result_of(code)

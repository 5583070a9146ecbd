"""What ``photonstep doctor`` says of the kernels, also where they cannot be used as asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import photonstep as ps
from photonstep import doctor
from photonstep.kernels import native
from photonstep.report import doctor_tables

ROOT = Path(__file__).resolve().parents[1]


def text_of(diagnosis, capsys):
    from rich.console import Console

    console = Console(width=200)
    for table in doctor_tables(diagnosis):
        console.print(table)
    return capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch):
    """No backends but what auto finds, and no long timing: the kernels' line is what is looked at here."""
    monkeypatch.setattr(doctor, "CANDIDATES", ())
    monkeypatch.setattr(doctor, "RUN_BUDGET_S", 0.01)


def kernels_line(text):
    return next(line.split(maxsplit=1)[1].strip() for line in text.splitlines() if line.startswith("kernels "))


def test_doctor_says_what_runs_the_kernels(quick, capsys):
    found = doctor.examine("live")
    assert found.kernels == native.describe()
    assert kernels_line(text_of(found, capsys)) == native.describe()
    assert found.can_run


def test_doctor_says_that_the_reference_is_used_and_why(quick, capsys):
    with native.use_reference():
        found = doctor.examine("live")
    assert kernels_line(text_of(found, capsys)) == "NumPy reference (native kernels switched off for a comparison)"
    assert found.can_run


def test_a_bundle_that_does_not_exist_is_told_once():
    with pytest.raises(ps.BundleError, match="no bundle 'nothing'"):
        doctor.examine("nothing")


def test_kernels_that_cannot_be_used_as_asked_are_a_finding_and_no_traceback():
    code = "import warnings; warnings.filterwarnings('ignore', message='.*[Ss]wig.*', category=DeprecationWarning)\n"
    code += "import sys; sys.argv = ['photonstep', 'doctor']; from photonstep.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, native.VARIABLE: "garbage", "COLUMNS": "200"},
    )  # fmt: skip
    assert kernels_line(done.stdout).startswith("none: PHOTONSTEP_KERNELS is 'garbage'; choose one of auto")
    assert "auto found nothing that runs" in done.stdout
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_load_refuses_kernels_that_cannot_be_used_as_asked(monkeypatch):
    monkeypatch.setattr(native, "_state", [])
    monkeypatch.setenv(native.VARIABLE, "garbage")
    with pytest.raises(ps.BackendError, match="PHOTONSTEP_KERNELS is 'garbage'; choose one of auto, native, reference"):
        ps.load("live", threads=1)

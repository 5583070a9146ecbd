"""Maps the top-level rooms to one import package; everything else is in pyproject.toml."""

from setuptools import setup

ROOMS = ("kernels", "runtime", "models", "export")

setup(
    packages=["photonstep", *(f"photonstep.{room}" for room in ROOMS), "photonstep.runtime.backends"],
    package_dir={
        "photonstep": "photonstep",
        "photonstep.runtime.backends": "runtime/backends",
        **{f"photonstep.{room}": room for room in ROOMS},
    },
    include_package_data=False,  # only what is named here; data folders are no packages
    package_data={
        "photonstep": ["py.typed", "demo_data/*"],
        "photonstep.runtime": ["noise_regression.npz"],
        "photonstep.models": ["zoo/*"],
    },
)

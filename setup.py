"""Maps the top-level rooms to one import package; everything else is in pyproject.toml."""

from setuptools import setup

FOLDERS = ("kernels", "kernels/ops", "kernels/reference", "runtime", "runtime/backends", "models", "export")

setup(
    packages=["photonstep", *(f"photonstep.{folder.replace('/', '.')}" for folder in FOLDERS)],
    package_dir={
        "photonstep": "photonstep",
        **{f"photonstep.{folder.replace('/', '.')}": folder for folder in FOLDERS},
    },
    include_package_data=False,  # only what is named here; data folders are no packages
    package_data={
        "photonstep": ["py.typed", "demo_data/*"],
        "photonstep.runtime": ["noise_regression.npz"],
        "photonstep.models": ["zoo/*"],
    },
)

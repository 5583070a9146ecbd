"""Maps the top-level rooms to one import package and compiles the native kernels; all else is in pyproject.toml."""

import hashlib
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDERS = (
    "kernels", "kernels/csrc", "kernels/ops", "kernels/reference", "runtime", "runtime/backends", "models", "export",
)  # fmt: skip
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wno-psabi",
]
LOOPS = ("kernels/csrc/loops.cpp", "kernels/csrc/temporal_loops.cpp")
SOURCES = sorted(p for p in Path("kernels/csrc").iterdir() if p.suffix in (".cuh", ".hpp", ".cpp"))
# as kernels/native.py works it out: a library that was built from other sources is not loaded
DIGEST = hashlib.sha256(b"".join(p.name.encode() + b"\0" + p.read_bytes() for p in SOURCES)).hexdigest()[:16]
VARIANTS = {
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}


class NativeLibrary(build_ext):
    """One library for ctypes, its loops compiled for every instruction set. Where that fails, the install goes on."""

    def build_extension(self, ext):
        unix = self.compiler.compiler_type == "unix"
        x86 = unix and platform.machine().lower() in ("x86_64", "amd64")
        defines = [("PS_SOURCES", f'"{DIGEST}"'), *([("PS_X86_VARIANTS", None)] if x86 else [])]
        flags = FLAGS if unix else ["/O2", "/std:c++17", "/fp:precise"]

        def compiled(source, variant, extra):
            return self.compiler.compile(
                [source],
                output_dir=f"{self.build_temp}/{variant}",
                macros=[*defines, ("PS_VARIANT", variant)],
                extra_postargs=[*flags, *extra],
                depends=ext.depends,
            )

        objects = compiled("kernels/csrc/native.cpp", "shared", [])
        for variant, extra in {"baseline": [], **(VARIANTS if x86 else {})}.items():
            for loops in LOOPS:
                objects += compiled(loops, variant, extra)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), target_lang="c++", extra_postargs=["-pthread"] if unix else []
        )

    def get_export_symbols(self, ext):
        return []  # loaded with ctypes: there is no PyInit function


setup(
    packages=["photonstep", *(f"photonstep.{folder.replace('/', '.')}" for folder in FOLDERS)],
    package_dir={
        "photonstep": "photonstep",
        **{f"photonstep.{folder.replace('/', '.')}": folder for folder in FOLDERS},
    },
    include_package_data=False,  # only what is named here; data folders are no packages
    package_data={
        "photonstep": ["py.typed", "demo_data/*"],
        "photonstep.kernels.csrc": ["*"],
        "photonstep.runtime": ["noise_regression.npz"],
        "photonstep.models": ["zoo/*"],
    },
    ext_modules=[
        Extension(
            "photonstep.kernels._native",
            ["kernels/csrc/native.cpp", *LOOPS],
            depends=[str(path) for path in sorted(Path("kernels/csrc").iterdir())],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": NativeLibrary},
)

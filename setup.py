"""The extension modules and the C kernels' ISA ladder. All metadata is in pyproject.toml."""

import os
import platform
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup

KERNELS = "pyrnn/_core/kernels"
HEADERS = sorted(glob(f"{KERNELS}/*.h"))
X86 = platform.machine().lower() in ("x86_64", "amd64")
LADDER = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
if not X86:
    LADDER = {"base": []}  # NEON is part of 64-bit Arm


def has_openmp() -> bool:
    """Try whether the compiler builds OpenMP programs; PYRNN_OPENMP=0 says not to."""
    if os.environ.get("PYRNN_OPENMP") == "0":
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        command = [*os.environ.get("CC", "cc").split(), "-fopenmp", str(source), "-o", str(source.with_suffix(""))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


OPENMP = ["-fopenmp"] if has_openmp() else []
if not OPENMP:
    print("pyrnn: building without OpenMP; the kernels will be serial", file=sys.stderr)

FLAGS = ["-std=gnu11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", *OPENMP]


def kernels(level: str, source: str, flags: list[str]) -> tuple[str, dict[str, object]]:
    path = f"{KERNELS}/{source}"
    return (
        f"pyrnn_{level}",
        {
            "sources": [path],
            "include_dirs": [KERNELS],
            "cflags": [*FLAGS, *flags],
            "obj_deps": {"": HEADERS, path: HEADERS},
        },
    )


LIBRARIES = [kernels("dispatch", "dispatch.c", [])] + [
    kernels(level, f"isa_{level}.c", flags) for level, flags in LADDER.items()
]


def module(name: str, **options: object) -> Extension:
    return Extension(
        f"pyrnn._core.{name}",
        [f"pyrnn/_core/{name}.pyx"],
        include_dirs=[KERNELS, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
        depends=[*HEADERS, "pyrnn/_core/memory.pxd", "pyrnn/_core/runtime.pxd"],
        **options,
    )


setup(
    libraries=LIBRARIES,
    ext_modules=[
        # One module holds the kernels; the others reach them through it.
        module("runtime", libraries=[*(name for name, _ in LIBRARIES), "m"], extra_link_args=OPENMP),
        module("memory"),
        module("recurrent"),
        module("attention"),
        module("basic"),
        module("update"),
    ],
)

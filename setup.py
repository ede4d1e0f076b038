"""All that setup.cfg cannot say: a kernel in C, without which the package works too, but slower."""

from setuptools import Extension, setup

kernel = Extension(
    "shards._native",
    ["shards/native.c", "shards/draws.c"],
    optional=True,
    extra_compile_args=["-O3"],
)
setup(ext_modules=[kernel])

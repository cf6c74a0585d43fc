"""Benchmarks: pyrnn beside its peers, in turns, in one run. See ``benchmarks/README.md``."""

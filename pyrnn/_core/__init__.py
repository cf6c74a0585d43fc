"""The compiled core: Cython over the C kernels of ``kernels/``, one module per op family."""

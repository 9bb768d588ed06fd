"""The microkernel's shell: the Kernel class, the journal, delivery, the clock, and the protocols of plugins.

Backends import `anybatch.kernel.backend`; everything that users need is in `anybatch` itself.
"""

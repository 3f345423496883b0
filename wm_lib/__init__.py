"""World Models (Ha & Schmidhuber, 2018) from pixels, on a laptop CPU.

Importing this package is instant: torch, Gymnasium and EnvPool are imported by the functions that need them.
"""

__version__ = "0.1.0"

"""Define the Triton kernels in Triton's interpreter, before anything else of this process imports them.

Whether a kernel is interpreted is fixed at its definition, Triton's own included. Folders whose test modules import
kernels call `define` in their conftest.py, since pytest imports the modules of one folder after another.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache

VARIABLE = "TRITON_INTERPRET"


@cache
def define() -> None:
    """Import every kernel with the variable set; servers and benchmarks that tests start must not inherit it.

    Raises:
        RuntimeError: a kernel was defined for a GPU before.
    """
    if importlib.util.find_spec("triton") is None:
        return
    if early := [name for name in sys.modules if name.startswith("fluid_kernels.")]:
        raise RuntimeError(
            f"{early[0]} was imported before the kernels were interpreted: call tests/interpreted_kernels.py's "
            "`define` in the conftest.py of the folder whose test modules import kernels"
        )
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    importlib.import_module("fluid_kernels.tools.aot_cases")  # imports every kernel
    os.environ.pop(VARIABLE)
    if before is not None:
        os.environ[VARIABLE] = before

"""A policy file -> integers that are the same on every machine; needs no MPI and no quantum package.

The package is called as the function of its name, ``distqtrl.api.export``.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("distqtrl.api").export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

"""MyLLM: train a language model on your own text, on the machine you have.

    import myllm

    run = myllm.train("novel.txt", max_steps=300)
    print(run.generate("Once upon", max_new_tokens=100))

Everything here is imported when it is used: importing the package takes a moment only.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from myllm.api import (
        benchmark,
        import_model,
        load,
        prepare,
        runs,
        settings,
        train,
    )
    from myllm.config import SamplingConfig
    from myllm.errors import MyLLMError
    from myllm.generate.generator import TextGenerator
    from myllm.run import Run
    from myllm.train.observer import Observer

__version__ = "0.1.0"

__all__ = [
    "MyLLMError",
    "Observer",
    "Run",
    "SamplingConfig",
    "TextGenerator",
    "benchmark",
    "import_model",
    "load",
    "prepare",
    "runs",
    "settings",
    "train",
]

# name → the module that defines it
_HOMES = {
    "MyLLMError": "myllm.errors",
    "Observer": "myllm.train.observer",
    "Run": "myllm.run",
    "SamplingConfig": "myllm.config",
    "TextGenerator": "myllm.generate.generator",
}
# wings whose names are verbs, too: `myllm.train(…)` beside `myllm.train.Trainer`
_VERBS = ("train", "runs")


def _api() -> ModuleType:
    # a container may grant fewer cores than PyTorch sees, and it asks once, when it is imported
    importlib.import_module("myllm.system.machine").use_available_cores()
    return importlib.import_module("myllm.api")


class _Verb(ModuleType):
    """A wing that can be called: it hands on to the function of its name in `myllm.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """The function, where `help`, notebooks and `inspect.signature` look for it."""
        return getattr(_api(), self.__name__.split(".")[1])

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return str(self.__wrapped__.__doc__)


class _Face(ModuleType):
    """The package itself. Python sets a wing as its attribute when that is first imported,
    whoever does it: then it becomes a verb."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _VERBS:
            return importlib.import_module(f"myllm.{name}")
        if name in __all__:
            home = importlib.import_module(_HOMES[name]) if name in _HOMES else _api()
            return getattr(home, name)
        raise AttributeError(f"module 'myllm' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Face

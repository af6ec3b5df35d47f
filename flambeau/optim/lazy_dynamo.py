"""Optimizers without `torch._dynamo`, until something else imports it.

An optimizer's `add_param_group`, `zero_grad`, `state_dict` and `load_state_dict` are decorated so that
torch.compile never traces into them; their first call imports torch._dynamo (over a second of CPU time) to
make the wrapper that says so. But nothing can be traced before torch._dynamo is imported, so until then the
bare function does the same. `torch._compile._disable_dynamo` keeps each wrapper in an attribute of the
function; a stand-in is put there that calls the bare function, and makes way for the real wrapper once
torch._dynamo is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

_CACHE = "__dynamo_disable"
"""The attribute in which torch (2.0 to 2.13 at least) keeps the wrapper."""
_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def defer_dynamo_import() -> None:
    """Let optimizers be made, cleared, saved and loaded without importing torch._dynamo; safe to call again.

    Does nothing where torch._dynamo is imported already, or where torch is built otherwise than expected.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in _METHODS:
        method = getattr(Optimizer, name)
        bare = getattr(method, "__wrapped__", None)
        code = getattr(method, "__code__", None)
        if bare is not None and code is not None and _CACHE in code.co_consts and not hasattr(bare, _CACHE):
            setattr(bare, _CACHE, _stand_in(method, bare))


def _stand_in(method: Callable[..., Any], bare: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return bare(*args, **kwargs)
        if getattr(bare, _CACHE, None) is call:
            delattr(bare, _CACHE)
        return method(*args, **kwargs)  # which now makes and keeps the real wrapper

    return call

"""Whether a part is of the kind that its slot takes, as far as its source says."""

from __future__ import annotations

from flambeau.config.lineage import MODULE, OPTIMIZER
from flambeau.config.signature import Signature
from flambeau.registry import FILE_READERS
from flambeau.registry.load import TRAINER_METHODS

_METHODS = {
    "metric": ("update", "compute", "reset"),
    "tracker": ("log_scalars", "close"),
    "scheduler": ("__call__",),
}


def fault_of_kind(kind: str, signature: Signature, *, registered: bool) -> str | None:
    """Why what a configuration names is no part of `kind`; None if it is, or if its source does not say.

    The same judgement is passed on the object itself when it is loaded, with nothing left open.
    """
    top = signature.target.split(".")[0]
    if signature.kind == "unknown":
        return None
    if signature.kind == "function":
        if kind not in ("model", "data", "criterion"):
            return f"a {kind} is a class, and this is a function"
        if top == "torch":
            return "of torch's own only classes are taken"
        name = signature.target.rpartition(".")[2]
        if not registered and name.split("_")[0] in FILE_READERS:
            return f"functions called {name} are refused, as they can run code or touch files"
        return None
    if not signature.whole:
        return None
    is_module, is_optimizer = MODULE in signature.ancestors, OPTIMIZER in signature.ancestors
    if kind == "optimizer":
        return None if is_optimizer else "it is not a torch.optim.Optimizer"
    if kind == "model":
        return None if is_module else "it is not a torch.nn.Module"
    if kind == "criterion":
        is_called = "__call__" in signature.methods and top != "torch"
        return None if is_module or is_called else "it is neither a torch.nn.Module nor has it __call__"
    if kind == "trainer":
        names = (signature.target, *signature.ancestors)
        ours = any(name.startswith("flambeau.") and name.endswith(".Trainer") for name in names)
        copied = signature.methods.issuperset(TRAINER_METHODS)  # a trainer may be copied out and owned
        return None if ours or copied else "it is not a flambeau Trainer"
    if is_optimizer or (is_module and kind != "metric") or top == "torch":
        return f"it is a {'torch.optim.Optimizer' if is_optimizer else 'class of torch'}"
    if kind == "data":
        gives = signature.offers & {"train", "val", "test"} or signature.methods & {"__getattr__"}
        return None if gives else "a data module has `train`, `val` or `test`"
    missing = [method for method in _METHODS.get(kind, ()) if method not in signature.methods]
    return f"it has no method `{missing[0]}`" if missing else None

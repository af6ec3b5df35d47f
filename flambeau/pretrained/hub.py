"""Weights from the Hugging Face hub, and timm's, which lie there too.

`huggingface_hub` finds, fetches and keeps the files (https://huggingface.co/docs/huggingface_hub); what it has in its
cache is used without a network, and with `HF_HUB_OFFLINE=1` nothing else is. Only safetensors files are looked for;
another one is taken if it is named, and read as any torch file is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flambeau.config.start_points import Place
from flambeau.errors import MissingExtraError, UsageError
from flambeau.pretrained.files import INDEX_SUFFIX, files_of_index, read_file
from flambeau.pretrained.weights import Weights


def read_hub(place: Place, shown: str, *, key: str | None = None) -> Weights:
    """The weights in a repository of the hub.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        UsageError: there is no such repository, revision or file, or it cannot be reached.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("huggingface_hub", "hub") from error
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(name: str, *, cached: bool = False) -> Path:
        where: dict[str, Any] = {"revision": place.revision, "local_files_only": cached}
        try:
            found: Any = huggingface_hub.hf_hub_download(place.name, name, **where)
        except LocalEntryNotFoundError as error:
            raise _unreachable(shown, name, error) from error
        except EntryNotFoundError:
            raise
        except (OSError, ValueError) as error:  # all that the library raises of itself, and of its transport
            raise _refused(shown, name, error) from error
        return Path(found)

    if place.file is not None:
        names = [place.file]
    else:
        names = ["model.safetensors", f"model{INDEX_SUFFIX}"]
    file = None
    failures: list[Exception] = []
    for name in names:
        try:
            # A hub that did not answer is not asked again, but the cache may hold the other name.
            file = fetch(name, cached=any(isinstance(failure, _UnreachableError) for failure in failures))
            break
        except (EntryNotFoundError, _UnreachableError) as error:
            failures.append(error)
    if file is None:
        for failure in failures:
            if isinstance(failure, _UnreachableError):
                raise failure
        raise UsageError(
            f"{shown}: the repository has no {' or '.join(names)}",
            remedy="name the file: hf://org/name/file.safetensors",
        ) from failures[0]
    if file.name.endswith(INDEX_SUFFIX):
        prefix = f"{place.file.rpartition('/')[0]}/" if place.file and "/" in place.file else ""
        for name in files_of_index(file, shown):
            fetch(prefix + name)
    weights = read_file(file, key=key, shown=shown)
    revision = _revision_of(file)
    return Weights(shown, weights.tensors, weights.read, weights.files, {"revision": revision} if revision else {})


def read_timm(place: Place, shown: str) -> Weights:
    """The weights that timm has for a model of its own, read from where timm has published them on the hub.

    timm says which they are (`resnet18` means `resnet18.a1_in1k`); they are not loaded by it, so that nothing is
    unpickled and no model is built.

    Raises:
        UsageError: timm is not installed, has no such model or no weights for it, or none on the hub.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise UsageError(f"{error.name} is not installed, which {shown} needs", remedy="pip install timm") from error
    name = place.name
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*", pretrained=True)[:5]
        raise UsageError(f"timm has no model '{name}'", remedy=f"the nearest are {', '.join(near)}" if near else None)
    config = timm.get_pretrained_cfg(name)
    source = getattr(config, "hf_hub_id", None) if config is not None else None
    if not source:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")[:5]
        raise UsageError(
            f"timm has no weights of '{name}' on the Hugging Face hub",
            remedy=f"there are {', '.join(tags)}" if tags else "give a file of its weights",
        )
    if special := getattr(config, "hf_hub_filename", None):
        raise UsageError(
            f"the weights of '{name}' lie in a file of another library ({source}/{special}), which timm converts",
            remedy="build the model by timm.create_model with pretrained: true",
        )
    weights = read_hub(Place("hub", str(source)), f"{shown} (hf://{source})")
    return Weights(weights.origin, weights.tensors, weights.read, weights.files, weights.known)


class _UnreachableError(UsageError):
    """A file is not in the cache, and the hub was not asked or did not answer."""


def _unreachable(shown: str, name: str, error: Exception) -> UsageError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _UnreachableError(
            f"{shown}: {name} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch it",
            remedy="fetch it where there is a network: hf download REPOSITORY; then copy the cache here",
        )
    cause = error.__cause__ or error.__context__ or error
    return _UnreachableError(
        f"{shown}: {name} is not in the cache ({constants.HF_HUB_CACHE}), and the hub cannot be reached "
        f"({type(cause).__name__})",
        remedy="fetch it where there is a network: hf download REPOSITORY; then copy the cache here, or give a file",
    )


def _refused(shown: str, name: str, error: Exception) -> UsageError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled | ConnectionError):
        return _unreachable(shown, name, error)
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{shown}: its owners ask for an account", remedy="accept their terms on its page, then run: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(
            f"{shown}: there is no such repository, or it is private",
            remedy="correct the name, or run: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"{shown}: the repository has no such revision", remedy="take a branch, tag or commit of it")
    if isinstance(error, HFValidationError):
        return UsageError(f"{shown}: {error}")
    text = str(error).strip().split("\n")[0]
    return UsageError(f"{shown}: {name} cannot be fetched: {type(error).__name__}: {text}")


def _revision_of(file: Path) -> str | None:
    """The commit that a file of the cache is of: it lies in `snapshots/<commit>/`."""
    parts = file.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None

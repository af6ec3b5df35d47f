"""The checkpoints of one run: saved in the background, pruned, and found again."""

from __future__ import annotations

import errno
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flambeau
from flambeau.checkpoint import publish
from flambeau.checkpoint.failure import explained
from flambeau.checkpoint.publish import FileRecord
from flambeau.checkpoint.reading import (
    FORMAT_OF_ONE,
    MANIFEST,
    TREE,
    Checkpoint,
    NewerFormatError,
    manifest_bytes,
)
from flambeau.checkpoint.retention import Mode, by_score, surplus
from flambeau.checkpoint.snapshot import HostCopies
from flambeau.checkpoint.tensors_file import StoredTensor, safetensors_chunks
from flambeau.checkpoint.tree import encode
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError


def name_of(step: int) -> str:
    """The directory of a step's checkpoint."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The folder `checkpoints/` of a run. One process writes it; any may read it.

    A save copies the state to host memory and returns; a thread writes, verifies and publishes it, then
    removes what need not be kept. A directory `step-00001200` is a whole checkpoint at every instant; `last`
    and `best` are links for people.

    Args:
        folder: the directory; made at the first save.
        settings: which checkpoints are kept.
        mode: whether the highest or the lowest score is best.
        warn: receives one line for each damaged checkpoint that is passed over.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: CheckpointSettings,
        mode: Mode = "max",
        warn: Callable[[str], None],
    ) -> None:
        self.folder = Path(folder)
        self._settings = settings
        self._mode: Mode = mode
        self._warn = warn
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        # By directory name: what this process has written or verified, and what it could not read as a whole.
        self._whole: dict[str, Checkpoint] = {}
        self._passed_over: set[str] = set()
        self._for_good: set[int] = set()

    def save(
        self, step: int, state: Mapping[str, Any], *, score: float | None = None, flush: Sequence[Path] = ()
    ) -> None:
        """Save a state: copy it now, write it in the background.

        Waits for a save that is still under way. A step that is already saved is left as it is, unless it
        comes with another score, or is to be kept for good; then it is replaced.

        Args:
            step: optimizer steps done.
            state: nested dicts, lists, tuples, numbers, strings, bytes, tensors and arrays; see `tree`.
                `model` and `ema` are written under the plain names of their weights.
            score: the monitored score at this step.
            flush: files that must be on disk before the checkpoint is (those that are there).

        Raises:
            CheckpointError: the state holds a value that cannot be saved. What fails later is told by
                :meth:`failed` and :meth:`wait`.
        """
        self._join()
        saved = self._whole.get(name_of(step))
        stays = step not in self._for_good or (saved is not None and saved.manifest.get("keep"))
        if saved is not None and saved.path.exists() and score in (None, saved.score) and stays:
            return
        tree, leaves = encode(state)
        tensors = self._copies.take(leaves)
        text = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
        self._thread = threading.Thread(
            target=self._write,
            args=(step, score, text, tensors, tuple(flush)),
            name="flambeau-checkpoint",
        )
        self._thread.start()

    def keep(self, step: int) -> None:
        """Never remove the checkpoint of `step`, which is to be saved next; its manifest says so."""
        self._for_good.add(step)

    def wait(self) -> None:
        """Return when what was begun is on disk.

        Raises:
            CheckpointError: a save failed, and :meth:`failed` has not told of it.
        """
        self._join()
        failure = self.failed()
        if failure is not None:
            raise failure

    def busy(self) -> bool:
        """Whether a save is under way, so that another would wait for it."""
        return self._thread is not None and self._thread.is_alive()

    def failed(self) -> CheckpointError | None:
        """The error of a save that failed, once; None if there is none. Does not wait."""
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Wait, and give the memory of the copies back. Raises as :meth:`wait` does."""
        self._join()
        self._copies.clear()
        self.wait()

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, every file read and compared; damaged ones are warned of.

        Raises:
            CheckpointError: the newest was written by a Flambeau newer than this one.
        """
        return self._first_whole(lambda: sorted(self._directories(), reverse=True))

    def best(self) -> Checkpoint | None:
        """The whole checkpoint with the best score, of equals the earliest; None if none has a score."""
        return self._first_whole(lambda: self._ranking(self._checkpoints()))

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, verified.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        steps = self.steps()
        name = name_of(step)
        path = self._directories().get(name)
        if path is None:
            remedy = f"steps that are there: {', '.join(map(str, steps)) or 'none'}"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}", remedy=remedy)
        return self._verified(name, path)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a readable manifest, ascending. Their files are not verified."""
        self._join()
        return sorted(checkpoint.step for checkpoint in self._checkpoints().values())

    def _directories(self) -> dict[str, Path]:
        found = publish.published(self.folder)
        return {name: path for name, path in found.items() if re.fullmatch(r"step-\d{8,}", name)}

    def _checkpoints(self) -> dict[str, Checkpoint]:
        """All that can be counted on, by directory name, as far as their manifests tell."""
        found = {}
        for name, path in self._directories().items():
            if name in self._passed_over:
                continue
            try:
                found[name] = self._open(name, path)
            except NewerFormatError:
                raise
            except CheckpointError:
                continue
        return found

    def _ranking(self, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
        """Names of the checkpoints that have a score, best first."""
        scores = {checkpoint.step: checkpoint.score for checkpoint in checkpoints.values()}
        return [name_of(step) for step in by_score(scores, self._mode)]

    def _first_whole(self, candidates: Callable[[], list[str]]) -> Checkpoint | None:
        self._join()
        for _ in range(3):  # the writer may remove what is being read: look again
            vanished = False
            for name in candidates():
                path = self._directories().get(name)
                try:
                    if path is not None:
                        return self._verified(name, path)
                except NewerFormatError:
                    raise
                except CheckpointError as error:
                    if path is not None and path.exists():
                        if name not in self._passed_over:
                            self._warn(f"{error}; it is passed over")
                        self._passed_over.add(name)
                        continue
                vanished = True
            if not vanished:
                break
        return None

    def _open(self, name: str, path: Path) -> Checkpoint:
        checkpoint = Checkpoint.open(path)
        if name != name_of(checkpoint.step):
            raise CheckpointError(f"checkpoint {name} is of step {checkpoint.step}: it was renamed")
        return checkpoint

    def _verified(self, name: str, path: Path) -> Checkpoint:
        checkpoint = self._open(name, path)
        checkpoint.verify()
        self._whole[name] = checkpoint
        return checkpoint

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # What follows runs in the background thread.

    def _write(
        self,
        step: int,
        score: float | None,
        tree: bytes,
        tensors: Mapping[str, list[StoredTensor]],
        flush: Iterable[Path],
    ) -> None:
        temporary = self.folder / f"{publish.TEMPORARY}{name_of(step)}"
        try:
            self._publish(temporary, step, score, tree, tensors, flush)
        except Exception as error:  # whatever it is, the training thread has to hear of it
            publish.discard(temporary)
            self._failure = explained(f"the checkpoint of step {step} was not saved", error, self._left())
            return
        try:
            publish.settle(self.folder / name_of(step))
            self._prune(step)
        except Exception as error:
            what = f"the checkpoint of step {step} is in place, but to flush it or to remove older ones failed"
            self._failure = explained(what, error, self._left())

    def _publish(
        self,
        temporary: Path,
        step: int,
        score: float | None,
        tree: bytes,
        tensors: Mapping[str, list[StoredTensor]],
        flush: Iterable[Path],
    ) -> None:
        self._begin(temporary)
        self._complete(temporary, step, score, tree, tensors, flush, {}, FORMAT_OF_ONE)

    def _begin(self, temporary: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        publish.tidy(self.folder)
        temporary.mkdir()

    def _complete(
        self,
        temporary: Path,
        step: int,
        score: float | None,
        tree: bytes,
        tensors: Mapping[str, list[StoredTensor]],
        flush: Iterable[Path],
        written: Mapping[str, FileRecord],
        format: int,
    ) -> None:
        """Write what is still to be written, the manifest of all, and give the directory its final name.

        Args:
            written: files that are there already.
        """
        files = {
            name: publish.write_file(temporary / name, safetensors_chunks(content)) for name, content in tensors.items()
        }
        files |= written
        files[TREE] = publish.write_file(temporary / TREE, [tree])
        for path in flush:
            if path.exists():
                publish.flush(path)
        manifest = {
            "format": format,
            "step": step,
            "score": score if score is None or math.isfinite(score) else str(score),  # JSON has no inf and nan
            "flambeau": getattr(flambeau, "__version__", None),
            "torch": getattr(sys.modules.get("torch"), "__version__", None),
            "files": {name: {"size": record.size, "sha256": record.sha256} for name, record in files.items()},
        }
        if step in self._for_good:
            manifest["keep"] = True
        publish.write_file(temporary / MANIFEST, [manifest_bytes(manifest)])
        final = self.folder / name_of(step)
        publish.publish(temporary, final)
        self._whole[final.name] = Checkpoint(final, step, score, manifest)
        self._passed_over.discard(final.name)

    def _prune(self, saved: int) -> None:
        """Turn the links to the newest and the best, and remove what need not be kept."""
        kept = self._checkpoints()
        ranking = self._ranking(kept)
        self._link("last", name_of(saved))
        self._link("best", ranking[0] if ranking else None)
        scores = {checkpoint.step: checkpoint.score for checkpoint in kept.values()}
        for_good = [checkpoint.step for checkpoint in kept.values() if checkpoint.manifest.get("keep")]
        going = [name_of(step) for step in surplus(scores, self._settings, self._mode, protect=[saved, *for_good])]
        for name in going:
            self._whole.pop(name, None)
        publish.remove(kept[name].path for name in going)

    def _link(self, name: str, target: str | None) -> None:
        try:
            publish.point(self.folder / name, target)
        except OSError as error:
            # FAT and some network file systems have no links; nothing but people's comfort depends on them.
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise

    def _left(self) -> Checkpoint | None:
        """The newest whole checkpoint, quietly."""
        try:
            for name, path in sorted(self._directories().items(), reverse=True):
                whole = self._whole.get(name)
                if whole is not None and whole.path == path:
                    return whole
                try:
                    return self._verified(name, path)
                except CheckpointError:
                    continue
        except OSError:
            return None
        return None

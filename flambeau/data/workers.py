"""Worker processes that read batches ahead, through torch's DataLoader.

The processes live as long as the pool and receive requests, not a dataset's indices: what a request gives is
the same in any process. The loader draws from a generator of its own, so the global ones are not touched.
"""

from __future__ import annotations

import atexit
import pickle
import signal
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from flambeau.errors import FlambeauError

# Whoever stops a run (Ctrl-C, Slurm, a terminal that closes) often signals every process of it. The training
# process decides what to do and closes its workers itself: a worker that died first would cost the last save.
_FOR_THE_MAIN_PROCESS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class WorkerPool:
    """Processes that answer requests in the order in which they were made.

    Args:
        work: `work(request) -> result`, pickled to the processes where they are not forked.
        workers: number of processes.
        prefetch: results that each prepares ahead.
        pin_memory: hand the tensors over in pinned memory, for fast copies to an accelerator.
    """

    def __init__(self, work: Callable[[Any], Any], *, workers: int, prefetch: int, pin_memory: bool) -> None:
        self._requests = _Requests()
        self._loader = _loader(_Answers(work), workers, prefetch, pin_memory, sampler=self._requests)
        self.close = _Closing(self, self._loader)

    def results(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The results of `requests`, which may be endless. An error of `work` is raised here, as it is."""
        self._requests.current = requests
        return _received(self._loader)


class StreamProcess:
    """One process that runs an iterator ahead; see WorkerPool."""

    def __init__(self, start: Callable[[], Iterator[Any]], *, prefetch: int, pin_memory: bool) -> None:
        self._loader = _loader(_Stream(start), 1, prefetch, pin_memory, sampler=None)
        self.close = _Closing(self, self._loader)

    def results(self) -> Iterator[Any]:
        """What the iterator gives."""
        return _received(self._loader)


def _loader(
    dataset: Any, workers: int, prefetch: int, pin_memory: bool, *, sampler: Iterable[Any] | None
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch,
        persistent_workers=True,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
        worker_init_fn=_Start(torch.get_default_dtype()),
    )


def _received(loader: DataLoader[Any]) -> Iterator[Any]:
    # Until a new process ignores these signals they wait, so that none dies of one.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_PROCESS)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return _checked(iterator)


def _checked(iterator: Iterator[Any]) -> Generator[Any, None, None]:
    while True:
        try:
            result = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise FlambeauError(
                f"a data worker died: {str(error).splitlines()[0]}",
                remedy="if memory ran out, lower data.workers, data.prefetch or data.batch_size",
            ) from error
        if isinstance(result, _Failure):
            raise result.error from _InWorker(result.trace)
        yield result


class _Closing:
    """Ends the processes of a loader: on call, when `owner` is collected, or before the interpreter cleans up."""

    def __init__(self, owner: object, loader: DataLoader[Any]) -> None:
        self._loader = loader
        weakref.finalize(owner, self).atexit = False
        # atexit runs last in, first out, so before multiprocessing's own clean-up, which sends SIGTERM, which
        # the workers ignore, and then waits for them.
        atexit.register(self)

    def __call__(self) -> None:
        atexit.unregister(self)
        iterator: Any = self._loader._iterator
        if iterator is None:
            return
        self._loader._iterator = None
        for process in iterator._workers:
            process.terminate = process.kill  # the loader's last means, and workers ignore SIGTERM
        iterator._shutdown_workers()


class _Requests:
    """The sampler of the loader: whatever is asked for at the moment."""

    def __init__(self) -> None:
        self.current: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.current)


class _Answers:
    """The dataset of the loader: an item is the answer to a request."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._work(request)
        except Exception as error:
            return _Failure(error)


class _Stream(IterableDataset[Any]):
    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._start()
        except Exception as error:
            yield _Failure(error)


class _Failure:
    """An error on its way to the main process."""

    def __init__(self, error: Exception) -> None:
        self.trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
            self.error = error
        except Exception:  # whatever a foreign class does while it is copied; its text still arrives
            self.error = RuntimeError(f"{type(error).__qualname__}: {error}")


class _InWorker(Exception):
    """Shows where an error arose, in the traceback of its cause."""

    def __str__(self) -> str:
        return f"in a data worker:\n\n{self.args[0]}"


class _Start:
    """What a process does before it reads."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, worker_id: int) -> None:
        for number in _FOR_THE_MAIN_PROCESS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_MAIN_PROCESS)
        torch.set_default_dtype(self._dtype)


def _as_it_is(result: Any) -> Any:
    return result

"""TensorBoard: event files in the run folder, shown by `tensorboard --logdir runs`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flambeau.errors import MissingExtraError
from flambeau.registry import register
from flambeau.run_folder.masking import mask_values
from flambeau.tracking.base import Tracker


@register.tracker("tensorboard")
class TensorBoardTracker(Tracker):
    """Event files for TensorBoard in `tensorboard/` of the run folder.

    All scalars of a step are one record (20 µs for six); nothing is buffered. On resume, what was logged
    before from `resume_step` on is taken out of the files, so that every reader sees each step once.
    """

    def __init__(self, *, run_dir: Path, resume_step: int | None = None) -> None:
        """Open a new event file.

        Raises:
            MissingExtraError: the package `tensorboard` is not installed.
        """
        super().__init__(run_dir=run_dir, resume_step=resume_step)
        try:
            # These are generated files: they cost 10 ms, where the package's public modules cost 100.
            from tensorboard.compat.proto import event_pb2, summary_pb2
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("tensorboard", "google"):
                raise
            raise MissingExtraError("tensorboard", "tensorboard") from error
        from flambeau.tracking.event_file import EventFileWriter, drop_events

        self._Event = event_pb2.Event
        self._Summary = summary_pb2.Summary
        self._Value = summary_pb2.Summary.Value
        folder = run_dir / "tensorboard"
        if resume_step is not None:
            drop_events(folder, self._is_logged_again)
        self._file = EventFileWriter(folder)
        self._write(file_version="brain.Event:2")
        # On every such mark but the first, a TensorBoard that has read the older files before they were cut
        # drops the same events.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=resume_step or 0, session_log=start)

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log all numbers of a step as one record."""
        value = self._Value
        self._write_values([value(tag=tag, simple_value=number) for tag, number in values.items()], step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log a Markdown text."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        metadata = summary_pb2.SummaryMetadata(
            plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text"),
            data_class=summary_pb2.DATA_CLASS_TENSOR,
        )
        self._write_values([self._Value(tag=tag, metadata=metadata, tensor=tensor)], step)

    def log_image(self, tag: str, image: Any, step: int) -> None:
        """Log an image (C, H, W), or several (N, C, H, W) as one picture."""
        from flambeau.tracking.images import encode_png, to_pixels

        pixels = to_pixels(image)
        height, width, channels = pixels.shape
        content = self._Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encode_png(pixels)
        )
        self._write_values([self._Value(tag=tag, image=content)], step)

    def log_histogram(self, tag: str, values: Any, step: int) -> None:
        """Log a distribution in 64 bins; what is not finite is left out of it."""
        from flambeau.tracking.histograms import Histogram

        found = Histogram.of(values)
        if found is not None:
            self._write_values([self._Value(tag=tag, histo=found.fields())], step)

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Log the configuration as YAML, the values of secret keys hidden."""
        import yaml

        text = yaml.safe_dump(mask_values(values), sort_keys=False, allow_unicode=True)
        # Four spaces make a block of code in Markdown.
        self.log_text("config", "".join(f"    {line}\n" for line in text.splitlines()), self.resume_step or 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_logged_again(self, record: bytes) -> bool:
        from google.protobuf.message import DecodeError

        try:
            event = self._Event.FromString(record)
        except DecodeError:
            return False  # damaged; readers know to stop there
        assert self.resume_step is not None
        return bool(event.step >= self.resume_step and not event.file_version)

    def _write_values(self, values: list[Any], step: int) -> None:
        self._write(step=step, summary=self._Summary(value=values))

    def _write(self, **fields: Any) -> None:
        self._file.write(self._Event(wall_time=time.time(), **fields).SerializeToString())

"""The configuration that lies in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flambeau.config.load import Config, load_config
from flambeau.config.project import Project, find_project
from flambeau.run_folder.folder import RunFolder


def load_saved_config(folder: RunFolder, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run, under the name that it was started with.

    Parts are looked up in the project around the run; for a run outside of any, in the one that the command runs in.
    """
    config = load_config(str(folder.config_file), overrides, project=_project_of(folder))
    return replace(config, name=folder.status.config or config.name)


def _project_of(folder: RunFolder) -> Project:
    around = find_project(folder.path)
    return find_project() if around.root == folder.path.resolve() else around

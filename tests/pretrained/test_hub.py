"""Weights from the Hugging Face hub and from timm: the cache in its real layout, a hub on loopback, and none at all."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save, save_file
from support.tasks import linear

from flambeau import load_pretrained
from flambeau.errors import MissingExtraError, UsageError

constants = pytest.importorskip("huggingface_hub.constants", reason="flambeau[hub]")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STATE = {"weight": torch.full((3, 4), 2.0), "bias": torch.full((3,), 5.0)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub at an address where nobody answers."""
    folder = tmp_path / "hub"
    folder.mkdir()
    # The library reads the environment once, when it is imported.
    for name, value in {
        "HF_HUB_CACHE": str(folder),
        "ENDPOINT": "http://127.0.0.1:9",
        "HUGGINGFACE_CO_URL_TEMPLATE": "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_ETAG_TIMEOUT": 1,
    }.items():
        monkeypatch.setattr(constants, name, value)
    return folder


def lay_out(cache: Path, repository: str, files: dict[str, bytes], *, revision: str = "main") -> None:
    """A repository as the library keeps it: blobs, a snapshot of links to them, and what a revision's name means."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        blob = folder / "blobs" / f"{hash(content) & 0xFFFFFFFF:08x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)


def loaded(path: str, **settings: Any) -> str:
    """Load and compare; gives the origin."""
    model = linear()
    report = load_pretrained(model, path, **settings)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])
    return report.origin


class TestTheCache:
    @pytest.mark.parametrize("offline", [True, False])
    def test_what_it_holds_needs_no_network(self, cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
        """With HF_HUB_OFFLINE=1 nobody is asked, and without it the hub's silence is no failure."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        lay_out(cache, "org/net", {"model.safetensors": save(STATE)})
        assert loaded("hf://org/net") == "hf://org/net"

    def test_a_file_in_a_folder_of_a_revision(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        lay_out(cache, "org/net", {"small/weights.safetensors": save(STATE)}, revision="v2")
        loaded("hf://org/net@v2/small/weights.safetensors")
        with pytest.raises(UsageError, match="not in the cache"):
            loaded("hf://org/net/small/weights.safetensors")

    def test_weights_in_several_files(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        index = {"weight_map": {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}}
        files = {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-1.safetensors": save({"weight": STATE["weight"]}),
            "model-2.safetensors": save({"bias": STATE["bias"]}),
        }
        lay_out(cache, "org/large", files)
        loaded("hf://org/large")

    def test_the_record_has_the_commit_and_the_hash(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import hashlib

        from flambeau.config.sections import PretrainedSettings
        from flambeau.pretrained.load import Start

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        content = save(STATE)
        lay_out(cache, "org/net", {"model.safetensors": content})
        (record,) = Start.plan(linear(), [PretrainedSettings(path="hf://org/net")]).records()
        assert record["revision"] == COMMIT
        assert record["sha256"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}

    def test_offline_what_is_not_there_is_an_error_that_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE forbids") as caught:
            loaded("hf://org/net")
        assert "hf download" in str(caught.value)

    def test_so_it_is_if_the_hub_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again for half a minute
        with pytest.raises(UsageError, match=r"not in the cache .* and the hub cannot be reached"):
            loaded("hf://org/net")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: files with their hash, commit and length."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        content = self.files.get(self.path)
        status = 200 if content is not None else 404
        self.send_response(status)
        if content is None:
            known = any(path.startswith("/".join(self.path.split("/")[:3]) + "/") for path in self.files)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = b""
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:08x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub on loopback; what is put into the dict is what it has."""
    Hub.files = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield Hub.files
    server.shutdown()
    server.server_close()


class TestTheHub:
    def test_weights_are_fetched_once_and_kept(self, served: dict[str, bytes]) -> None:
        served["/org/net/resolve/main/model.safetensors"] = save(STATE)
        loaded("hf://org/net")
        served.clear()
        loaded("hf://org/net")

    def test_a_repository_that_is_not_there(self, served: dict[str, bytes]) -> None:
        with pytest.raises(UsageError, match="no such repository"):
            loaded("hf://org/other")

    def test_a_repository_without_safetensors_weights(self, served: dict[str, bytes]) -> None:
        served["/org/net/resolve/main/pytorch_model.bin"] = b""
        with pytest.raises(UsageError, match=r"has no model\.safetensors or model\.safetensors\.index\.json"):
            loaded("hf://org/net")

    def test_a_torch_file_that_is_named_is_read_as_safely_as_any(
        self, served: dict[str, bytes], tmp_path: Path
    ) -> None:
        torch.save(STATE, tmp_path / "good.bin")
        torch.save({"model": UsageError("anything but tensors")}, tmp_path / "bad.bin")
        for name in ("good", "bad"):
            served[f"/org/net/resolve/main/{name}.bin"] = (tmp_path / f"{name}.bin").read_bytes()
        loaded("hf://org/net/good.bin")
        with pytest.raises(UsageError, match="holds more than tensors"):
            loaded("hf://org/net/bad.bin")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[hub\]"):
        loaded("hf://org/net")


class TestTimm:
    def test_its_name_for_weights_leads_to_where_they_lie(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """timm (here: the three functions of it that are used) says which repository; the hub's cache has the file."""
        import sys

        config = SimpleNamespace(hf_hub_id="timm/tiny.a1_in1k", hf_hub_filename=None)
        timm = SimpleNamespace(
            is_model=lambda name: name.startswith("tiny"),
            get_pretrained_cfg=lambda name: config,
            list_models=lambda *args, **named: ["tiny", "tiny_large"],
            list_pretrained=lambda *args: [],
        )
        monkeypatch.setitem(sys.modules, "timm", timm)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        lay_out(cache, "timm/tiny.a1_in1k", {"model.safetensors": save(STATE)})
        assert loaded("timm://tiny") == "timm://tiny (hf://timm/tiny.a1_in1k)"
        with pytest.raises(UsageError, match=r"no model 'tny'\n  the nearest are tiny, tiny_large"):
            loaded("timm://tny")
        config.hf_hub_filename = "open_clip_pytorch_model.bin"
        with pytest.raises(UsageError, match="file of another library"):
            loaded("timm://tiny")
        config.hf_hub_id = None
        with pytest.raises(UsageError, match="no weights of 'tiny'"):
            loaded("timm://tiny")

    def test_without_timm_it_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(UsageError, match=r"timm is not installed.*\n  pip install timm"):
            loaded("timm://resnet18")

    @pytest.mark.torchvision
    def test_the_real_timm_fills_a_model_of_its_own(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Its default weights of a network, had they been fetched, go into its own network whole."""
        timm = pytest.importorskip("timm", reason="timm is installed beside torchvision")
        donor = timm.create_model("resnet18", pretrained=False)
        source = timm.get_pretrained_cfg("resnet18").hf_hub_id
        save_file({name: item.clone() for name, item in donor.state_dict().items()}, tmp_path / "w.safetensors")
        lay_out(cache, source, {"model.safetensors": (tmp_path / "w.safetensors").read_bytes()})
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        model = timm.create_model("resnet18", num_classes=7)
        report = load_pretrained(model, "timm://resnet18", exclude=["fc"])
        assert len(report.matched) == len(donor.state_dict()) - 2
        assert torch.equal(model.conv1.weight, donor.conv1.weight)

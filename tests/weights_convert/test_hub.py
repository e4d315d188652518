"""The hub that does not give what is asked for, and the hub's own cache without a network."""

import contextlib
import http.server
import json
import pathlib
import sys
import threading

import huggingface_hub
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import make

import brh_jax
from brh_jax.errors import UserError
from weights_convert import hub
from weights_convert.onnx_graph import external_files

MODEL = "somebody/small-vit"


@pytest.fixture
def cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def online(cache_of_the_hub, monkeypatch):
    """A hub on this machine that answers everything as it is told to."""
    answer = {"status": 500, "headers": {}, "body": b"{}"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer["body"])

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with contextlib.closing(server.socket):
        yield answer
        server.shutdown()


@pytest.mark.parametrize(
    "status, headers, message",
    [
        (401, {"X-Error-Code": "GatedRepo"}, r"small-vit is gated \(401\): accept its terms on https.*then log in.*HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, r"small-vit is gated \(403\): accept its terms"),
        (403, {}, r"small-vit is gated \(403\)"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, r"does not take your token \(401\)"),
        (401, {"X-Error-Code": "RepoNotFound"}, "knows no model 'somebody/small-vit', or shows it only to some: check the name"),
        (404, {"X-Error-Code": "RepoNotFound"}, "knows no model 'somebody/small-vit'"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "small-vit has no revision 'v9': expected a branch"),
        (429, {"Retry-After": "77"}, r"too many requests from here \(429\). Try again in 77 seconds"),
        (429, {}, r"too many requests from here \(429\). Try again in a few minutes"),
        (500, {}, "it answers 500 .*Try again later, or download"),
    ],
)
def test_what_the_hub_answers(status, headers, message, online):
    online.update(status=status, headers=headers)
    with pytest.raises(UserError, match=f"could not get hf:{MODEL}@v9 from the hub: .*{message}") as error:
        brh_jax.load(f"hf:{MODEL}@v9")
    assert "\n" not in str(error.value)


def test_nobody_there(online, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Check the network, or download somebody/small-vit elsewhere and give the folder"):
        brh_jax.load(f"hf:{MODEL}")


def test_no_name_of_a_model(online):
    with pytest.raises(UserError, match="'some body/x' is no name of a model .*expected organisation/model"):
        brh_jax.load("hf:some body/x")


def cached(folder, name=MODEL) -> pathlib.Path:
    """A snapshot in the hub's cache: links to blobs."""
    repo = folder / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def link(snapshot: pathlib.Path, file: pathlib.Path) -> None:
    blob = snapshot.parents[1] / "blobs" / f"blob-of-{file.name}"
    blob.write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(blob)


def test_a_warm_cache_needs_no_network(cache_of_the_hub, tmp_path):
    make("dinov2", tmp_path / "hf")
    snapshot = cached(cache_of_the_hub)
    for file in (tmp_path / "hf").iterdir():
        link(snapshot, file)
    encoder = brh_jax.load(f"hf:{MODEL}")
    assert encoder.name == "small-vit"
    np.testing.assert_array_equal(encoder.params["norm"]["scale"], brh_jax.load(tmp_path / "hf").params["norm"]["scale"])
    assert brh_jax.load(f"hf:{MODEL}/model.safetensors").depth == 3


def test_a_warm_cache_stands_in_for_a_hub_that_fails(online, cache_of_the_hub, tmp_path):
    make("dinov2", tmp_path / "hf")
    snapshot = cached(cache_of_the_hub)
    for file in (tmp_path / "hf").iterdir():
        link(snapshot, file)
    for status in (429, 500):
        online.update(status=status)
        assert hub.snapshot(MODEL) == snapshot


def test_a_cold_cache_and_one_with_a_part(cache_of_the_hub, tmp_path):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the hub's cache.*no whole copy of it. Unset it, or download"):
        brh_jax.load(f"hf:{MODEL}")
    snapshot = cached(cache_of_the_hub)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="the hub's cache holds no weights .*HF_HUB_OFFLINE is set: unset it"):
        brh_jax.load(f"hf:{MODEL}")
    with pytest.raises(UserError, match="the hub's cache holds no open_clip_model.safetensors of it"):
        brh_jax.load(f"hf:{MODEL}/open_clip_model.safetensors")


def test_the_tensors_of_a_graph_lie_in_the_cache_as_links(cache_of_the_hub, tmp_path):
    from test_onnx_files import graph_with_data

    graph_with_data(tmp_path / "w.onnx", {"cls_token": np.ones((1, 1, 4), np.float32)}, "w.onnx_data")
    snapshot = cached(cache_of_the_hub)
    link(snapshot, tmp_path / "w.onnx")
    link(snapshot, tmp_path / "w.onnx_data")
    assert external_files(hub.snapshot(MODEL) / "w.onnx") == [snapshot / "w.onnx_data"]

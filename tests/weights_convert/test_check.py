"""--check hands untrusted configurations to other libraries: what is in them that is not architecture goes nowhere."""

import json
import pathlib
import shutil
import sys
import types

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import edit_config, make, tensors

import brh_jax
from brh_jax.errors import UserError
from weights_convert import check
from weights_convert.__main__ import main

GOLDEN = pathlib.Path(__file__).parents[1] / "parity" / "golden"


class Trunk(torch.nn.Module):
    """What of timm's models is asked for: blocks, and a norm after them."""

    def __init__(self, tokens, depth=2, dim=32):
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(depth))
        self.norm = torch.nn.LayerNorm(dim)

    def forward_features(self, pixels):
        x = torch.zeros(1, self.tokens, self.dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins of timm and open_clip that note what they are given, and fail where they are asked to read a file."""
    given = {}

    def create_model(name, **options):
        given.update(name=name, **options)
        return Trunk(tokens=17)

    def clip(**options):
        given.update(options)
        model = torch.nn.Module()
        model.visual = torch.nn.Module()
        model.visual.trunk = Trunk(tokens=16)
        return model

    timm = types.SimpleNamespace(create_model=create_model, is_model=lambda name: name.startswith("vit_"))
    open_clip = types.SimpleNamespace(CustomTextCLIP=clip, CLIP=clip)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "open_clip", open_clip)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: name)
    return given


def test_timm_is_told_the_architecture_alone(libraries, tmp_path):
    folder = shutil.copytree(GOLDEN / "timm-dinov2", tmp_path / "model")
    encoder = brh_jax.load(folder)
    about = json.loads((folder / "config.json").read_text())
    bad = {"checkpoint_path": "evil.pth", "pretrained": True, "pretrained_cfg": {"file": "evil.pth"}, "img_size": [9, 9]}
    edit_config(folder, model_args=about["model_args"] | bad | {"embed_dim": {"a": 1}})
    comparison = check.compare(str(folder), encoder)
    kept = {"depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2, "dynamic_img_size": True}
    assert libraries == {"name": about["architecture"], "pretrained": False, "num_classes": 0, "img_size": (32, 32), **kept}
    assert comparison.reference == "timm's vit_small_patch14_dinov2" and not comparison.passed


@pytest.mark.parametrize("name", ["hf-hub:someone/evil", "local-dir:/tmp/evil", ["vit_small_patch14_dinov2"]])
def test_timm_is_given_names_only(libraries, tmp_path, name):
    folder = shutil.copytree(GOLDEN / "timm-dinov2", tmp_path / "model")
    encoder = brh_jax.load(folder)
    edit_config(folder, architecture=name)
    with pytest.raises(UserError, match="timm knows no architecture .*so there is nothing to compare with"):
        check.compare(str(folder), encoder)
    assert not libraries


def test_open_clip_is_told_the_architecture_alone(libraries, tmp_path):
    folder = shutil.copytree(GOLDEN / "open_clip-siglip", tmp_path / "model")
    encoder = brh_jax.load(folder)
    about = json.loads((folder / "open_clip_config.json").read_text())
    model = about["model_cfg"]
    model["vision_cfg"] |= {"timm_model_pretrained": True, "pretrained": "evil.pth"}
    model["text_cfg"] |= {"hf_model_name": "someone/evil", "hf_tokenizer_name": "someone/evil", "hf_model_pretrained": True}
    model |= {"multimodal_cfg": {"hf_model_name": "someone/evil"}, "cache_dir": "/tmp"}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    check.compare(str(folder), encoder)
    assert set(libraries) == {"embed_dim", "init_logit_bias", "vision_cfg", "text_cfg"}
    assert set(libraries["vision_cfg"]) == {"image_size", "timm_model_name", "timm_pool", "timm_proj"}
    assert set(libraries["text_cfg"]) == {"context_length", "vocab_size", "width", "heads", "layers"}


def test_pickles_are_never_read_by_the_library(libraries, tmp_path, monkeypatch):
    """timm reads a .bin with a full unpickler: it is given tensors that were read here."""
    folder = shutil.copytree(GOLDEN / "timm-dinov2", tmp_path / "model")
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    encoder = brh_jax.load(folder)
    seen = {}
    monkeypatch.setattr(Trunk, "load_state_dict", lambda self, state, strict: seen.update(state))
    check.compare(str(folder), encoder)
    assert seen.keys() == tensors(GOLDEN / "timm-dinov2").keys()


def test_transformers_is_told_the_architecture_alone(tmp_path, monkeypatch, capsys):
    import transformers

    make("dinov2", tmp_path / "hf")
    edit_config(
        tmp_path / "hf",
        attn_implementation="someone/evil-kernel",
        auto_map={"AutoModel": "evil.Model"},
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
    )
    configs = []
    build = transformers.AutoModel.from_pretrained

    def watched(*args, **options):
        configs.append(options)
        return build(*args, **options)

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", watched)
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--check", "--image-size=56"]) == 0
    (options,) = configs
    assert (options["attn_implementation"], options["trust_remote_code"]) == ("eager", False)
    assert not {"auto_map", "quantization_config", "attn_implementation"} & set(options["config"].to_dict())


@pytest.mark.parametrize("name", ["clip", "clip-with-text", "siglip", "vit", "mae", "dinov3", "dinov3-few-biases"])
def test_every_family_of_transformers_still_agrees(name, tmp_path, capsys):
    make(name, tmp_path / "hf")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--check"]) == 0, capsys.readouterr().err
    assert "agrees" in capsys.readouterr().out


def test_known_settings_are_plain_values():
    given = {"depth": 3, "width": [1, 2.0, None], "name": "x", "object": {"a": 1}, "nested": [[1]], "other": 1}
    known = set(given) - {"other"}
    assert check.known_settings(given, known) == {"depth": 3, "width": [1, 2.0, None], "name": "x"}

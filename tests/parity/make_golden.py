"""Makes tests/parity/golden: small randomly initialised models of timm and open_clip as their hubs hold them, with their states.

    pip install timm open_clip_torch && python tests/parity/make_golden.py

The libraries need torchvision, which the tests do without: they read what this wrote. Weights are stored in float16, which holds
them exactly; `states.safetensors` has the images and a_0 ... a_L and the final norm at two image sizes, in float32.
"""

import hashlib
import json
import pathlib
import shutil

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "mlp_ratio": 2, "dynamic_img_size": True}
TIMM = {
    "augreg": ("vit_base_patch16_224", {"num_classes": 5}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"num_classes": 5}),
    "deit3": ("deit3_small_patch16_224", {"num_classes": 5}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {}),
    "dinov2-swiglu": ("vit_giant_patch14_dinov2", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3-gated": ("vit_small_plus_patch16_dinov3", {}),
    "dinov3-biases": ("vit_small_patch16_dinov3_qkvb", {}),
    "clip": ("vit_base_patch16_clip_224", {"num_classes": 5}),
    "clip-quick": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 5}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "siglip2": ("vit_so400m_patch16_siglip_256", {}),
}
TEXT = {"context_length": 4, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
OPEN_CLIP = {
    "clip": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": TEXT,
    },
    "clip-gelu": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 32,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": TEXT,
    },
}


def randomise(model):
    """Draws every parameter, gains and biases too, and rounds it to float16."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = name.endswith((".gamma", "gamma_1", "gamma_2")) or (
                ("norm" in name or "ln_" in name) and name.endswith("weight")
            )
            scale = 0.1 if gain else 0.3 if "token" in name or "pos" in name else 0.05 if "patch" in name else 0.12
            parameter.normal_(float(gain), scale)
            parameter.copy_(parameter.half().float())
    return model.eval()


def states_of(blocks, norm, run, sizes):
    """{name: array} of images, states and final norm."""
    found = {}
    for number, size in enumerate(sizes):
        image = np.random.default_rng(number).normal(size=(1, *size, 3)).astype(np.float32)
        states, final = [], []
        hooks = [blocks[0].register_forward_pre_hook(lambda module, args, states=states: states.append(args[0]))]
        hooks += [block.register_forward_hook(lambda module, args, out, states=states: states.append(out)) for block in blocks]
        hooks.append(norm.register_forward_hook(lambda module, args, out, final=final: final.append(out)))
        with torch.no_grad():
            run(torch.tensor(image).permute(0, 3, 1, 2))
        for hook in hooks:
            hook.remove()
        found |= {f"{number}.image": torch.tensor(image), f"{number}.states": torch.stack(states), f"{number}.final": final[0]}
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def smaller(architecture, make=timm.create_model, **kwargs):
    """timm's model in the size of this file, which an open_clip configuration cannot ask for."""
    return make(architecture, **kwargs | {key: value for key, value in SMALL.items() if key != "dynamic_img_size"})


def store(folder, model, about: dict, states: dict):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    save_file(weights, folder / about.pop("file"))
    for name, content in about.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    save_file(states, folder / "states.golden")


def main():
    for name, (architecture, changes) in TIMM.items():
        args = SMALL | changes
        if "swiglu" in name:
            args["mlp_ratio"] = 4
        model = randomise(timm.create_model(architecture, pretrained=False, **args))
        kept = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")}
        about = {
            "architecture": architecture,
            "num_classes": args.get("num_classes", 0),
            "model_args": args,
            "pretrained_cfg": kept,
        }
        about["pretrained_cfg"]["input_size"] = (3, 32, 32)
        states = states_of(model.blocks, model.norm, model.forward_features, [(32, 32), (48, 40)])
        store(GOLDEN / f"timm-{name}", model, {"file": "model.safetensors", "config.json": about}, states)
    for name, cfg in OPEN_CLIP.items():
        if "timm_model_name" in cfg["vision_cfg"]:
            given = {key: value for key, value in cfg.items() if key != "custom_text"}
            given["vision_cfg"] = cfg["vision_cfg"] | {"timm_pool": "map"}
            make = timm.create_model
            timm.create_model = smaller
            try:
                model = randomise(open_clip.CustomTextCLIP(**given))
            finally:
                timm.create_model = make
            trunk = model.visual.trunk
            blocks, norm, run, sizes = trunk.blocks, trunk.norm, trunk.forward_features, [(32, 32)]
        else:
            model = randomise(open_clip.CLIP(**cfg))
            visual = model.visual
            blocks, norm, run, sizes = visual.transformer.resblocks, visual.ln_post, visual, [(32, 32)]
        preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
        if "siglip" in name:
            preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        about = {"file": "open_clip_model.safetensors", "open_clip_config.json": {"model_cfg": cfg, "preprocess_cfg": preprocess}}
        store(GOLDEN / f"open_clip-{name}", model, about, states_of(blocks, norm, run, sizes))
    sums = {
        str(path.relative_to(GOLDEN)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(GOLDEN.rglob("*"))
        if path.is_file() and path.name != "checksums.json"
    }
    made = {"timm": timm.__version__, "open_clip": open_clip.__version__, "torch": torch.__version__}
    (GOLDEN / "checksums.json").write_text(json.dumps({"made_with": made, "sha256": sums}, indent=1) + "\n")


if __name__ == "__main__":
    main()

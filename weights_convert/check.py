"""A conversion against the implementation that the weights were made for, state by state."""

import importlib.util
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax
import numpy as np

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from weights_convert import export
from weights_convert.facts import section, whole_number
from weights_convert.sources import Source, open_source
from weights_convert.tensors import first_line, floats

TOLERANCE = 1e-5
# What of a configuration is handed to the library that computes the reference. Not of a ViT: code, quantisation, file types.
NOT_SETTINGS = {"auto_map", "quantization_config", "attn_implementation", "dtype", "torch_dtype", "transformers_version"}
TIMM_SETTINGS = {
    *("act_layer", "class_token", "depth", "dynamic_img_size", "embed_dim", "fc_norm", "final_norm", "global_pool"),
    *("init_values", "mlp_ratio", "no_embed_class", "norm_layer", "num_heads", "patch_size", "pos_embed", "pre_norm"),
    *("proj_bias", "qk_norm", "qkv_bias", "reg_tokens"),
}
OPEN_CLIP_VISION = {
    *("head_width", "image_size", "layers", "ls_init_value", "mlp_ratio", "patch_size", "pool_type", "width"),
    *("timm_drop", "timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias"),
}
OPEN_CLIP_TEXT = {
    *("context_length", "embed_cls", "heads", "layers", "mlp_ratio", "no_causal_mask", "pool_type", "proj_bias"),
    *("vocab_size", "width"),
}
OPEN_CLIP_SETTINGS = {"embed_dim", "init_logit_bias", "quick_gelu"}


class Difference(NamedTuple):
    """Attributes: stage, largest absolute difference, and largest value of the reference there."""

    stage: str
    largest: float
    size: float


class Comparison(NamedTuple):
    """Attributes: the reference implementation, and the differences stage by stage."""

    reference: str
    stages: list[Difference]

    @property
    def passed(self) -> bool:
        """Whether every state agrees to 1e-5 of its size."""
        return all(d.largest <= TOLERANCE * max(d.size, 1.0) for d in self.stages)

    def lines(self) -> list[str]:
        """What was compared, a line each, for people."""
        worst = max(d.largest / max(d.size, 1.0) for d in self.stages)
        verdict = "agrees" if self.passed else "DOES NOT AGREE"
        return [
            f"compared with {self.reference}, one random image:",
            *(f"  {d.stage:<12} largest difference {d.largest:.1e} of values up to {d.size:.1e}" for d in self.stages),
            f"  {verdict}: {worst:.1e} of a state's size, {TOLERANCE:.0e} allowed",
        ]


def compare(spec: str, encoder: Encoder) -> Comparison:
    """Every state and the final norm of one random image at the encoder's size, in float32.

    Raises:
        UserError: no reference implementation for this kind of source, or its library is not installed.
    """
    source = open_source(spec)
    name, states_of = _reference(source, encoder)
    height, width = encoder.preprocessing.crop
    image = np.random.default_rng(0).normal(size=(1, height, width, encoder.config.channels)).astype(np.float32)
    try:
        theirs, final = states_of(image)
    except UserError:
        raise
    except Exception as error:  # whatever the library raises: it is not ours to tell apart
        raise UserError(
            f"{name} could not compute these weights to compare with ({type(error).__name__}: {first_line(error)})"
        ) from None
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(encoder.trajectory(image))
        if final is not None:
            ours_final = np.asarray(encoder.features(ours[-1]))[:, : final.shape[1]]
    stages = ["embedding", *(f"block {i}" for i in range(1, encoder.depth + 1))]
    differences = [_difference(stage, a, b) for stage, a, b in zip(stages, ours, theirs, strict=True)]
    if final is not None:
        differences.append(_difference("final norm", ours_final, final))
    return Comparison(name, differences)


def _difference(stage, ours, theirs):
    if ours.shape != theirs.shape:
        raise UserError(f"{stage}: ours is {ours.shape}, the reference {theirs.shape}")
    return Difference(stage, float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()))


def _reference(source: Source, encoder: Encoder) -> tuple[str, Callable]:
    if (hf := source.hf) is not None and not export.is_raptor(source):
        _need("torch", "transformers")
        return "transformers", lambda image: _transformers(source, hf["model_type"], image)
    if (about := source.timm) is not None:
        _need("torch", "timm")
        return f"timm's {about['architecture']}", lambda image: _timm(source, about, image)
    if (config := source.open_clip) is not None:
        _need("torch", "open_clip")
        return "open_clip", lambda image: _open_clip(source, config["model_cfg"], image)
    raise UserError(
        f"{source.origin} has no configuration of transformers, timm or open_clip beside it, so there is no implementation to "
        "compare with: give a folder in the hub's layout"
    )


def _need(*modules):
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(f"comparing with the reference implementation needs {' and '.join(missing)}: pip install it")


def _pixels(image):
    import torch

    return torch.tensor(image).permute(0, 3, 1, 2)


def _transformers(source: Source, kind: str, image):
    import torch
    import transformers

    if kind.startswith("siglip2"):
        raise UserError("SigLIP 2 of any aspect ratio takes patches, not images: it is compared in this project's tests")
    classes = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
    towers = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    model_class = getattr(transformers, classes.get(kind, "AutoModel"))
    model = model_class.from_pretrained(
        source.folder,
        config=_transformers_config(towers.get(kind, kind), source.hf or {}),
        dtype=torch.float32,
        attn_implementation="eager",  # of the configuration's own choice it may be code from the hub
        trust_remote_code=False,
        local_files_only=True,
        weights_only=True,
    ).eval()
    options: dict[str, Any] = {}
    if not kind.startswith("dinov"):
        options["interpolate_pos_encoding"] = True
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
        side = model.config.patch_size
        options["noise"] = torch.arange(float(image.shape[1] // side * (image.shape[2] // side)))[None]  # keeps the order
    with torch.no_grad():
        out = model(_pixels(image), output_hidden_states=True, **options)
    states = [s.numpy() for s in out.hidden_states]
    if kind.startswith("clip"):
        final = out.pooler_output[:, None]  # the norm of the class token alone
    elif out.last_hidden_state.shape[1] == states[0].shape[1]:
        final = out.last_hidden_state
    else:
        final = None
    return states, None if final is None else final.numpy()


def _transformers_config(kind: str, about: dict):
    """The class's own settings out of config.json: anything else in it, code or quantisation say, goes nowhere."""
    import transformers

    about = about.get("vision_config") or about
    config = transformers.AutoConfig.for_model(kind)
    known = (set(config.to_dict()) | {"rope_theta"}) - NOT_SETTINGS
    return type(config)(**{name: value for name, value in about.items() if name in known})


def _hooked(blocks, run):
    """Input of the first block and outputs of all, while `run` is called."""
    import torch

    states = []
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))]
    hooks += [block.register_forward_hook(lambda module, args, out: states.append(out)) for block in blocks]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return [s.numpy() for s in states]


def _timm(source: Source, about: dict, image):
    import timm

    _expect_timm(about["architecture"])
    args = known_settings(section(about, "model_args"), TIMM_SETTINGS)
    args |= {"num_classes": whole_number("num_classes", about.get("num_classes", 0), 0), "img_size": tuple(image.shape[1:3])}
    model = timm.create_model(about["architecture"], pretrained=False, **args)
    _fill(model, source)
    final = []
    model.norm.register_forward_hook(lambda module, a, out: final.append(out))
    states = _hooked(model.blocks, lambda: model.forward_features(_pixels(image)))
    return states, final[0].detach().numpy()


def _open_clip(source: Source, about: dict, image):
    import open_clip

    vision = known_settings(section(about, "vision_cfg"), OPEN_CLIP_VISION)
    text = known_settings(section(about, "text_cfg"), OPEN_CLIP_TEXT)
    rest = known_settings(about, OPEN_CLIP_SETTINGS)
    custom = about.get("custom_text", False) or "timm_model_name" in vision
    if "timm_model_name" in vision:
        _expect_timm(vision["timm_model_name"])
    build = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = build(**rest, vision_cfg=vision, text_cfg=text)
    _fill(model, source)
    visual = model.visual.eval()
    if (trunk := getattr(visual, "trunk", None)) is not None:
        return _hooked(trunk.blocks, lambda: trunk.forward_features(_pixels(image))), None
    return _hooked(visual.transformer.resblocks, lambda: visual(_pixels(image))), None


def _expect_timm(name) -> None:
    """Refuses what is no name of timm's: it also takes addresses, hf-hub:... and local-dir:..., and what lies there."""
    import timm

    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(f"timm knows no architecture {name!r}, so there is nothing to compare with")


def known_settings(given: dict, known: Set[str]) -> dict[str, Any]:
    """Settings of a configuration that a library may be handed: those that are known, as plain values.

    What a configuration from anywhere says beside them goes nowhere: among the arguments of timm's and open_clip's models are
    files to unpickle and repositories to download from.
    """
    plain = (int, float, str, bool, type(None))
    return {
        name: value
        for name, value in given.items()
        if name in known and (isinstance(value, plain) or (isinstance(value, list) and all(isinstance(v, plain) for v in value)))
    }


def _fill(model, source: Source) -> None:
    """The source's tensors, as they were read here, into a model of theirs; never the library's own reading of files."""
    import torch

    state = {name: torch.tensor(np.asarray(floats(tensor, np.float32)[0])) for name, tensor in source.tensors.items()}
    model.load_state_dict(state, strict=False)
    model.eval()

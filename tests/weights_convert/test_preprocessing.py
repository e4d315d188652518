"""Images made ready as transformers' processors do it, on real photographs of odd sizes, for every family's processor."""

import json
import pathlib
import sys

import numpy as np
import pytest
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import make

import brh_jax
from brh_jax.errors import UserError
from weights_convert import convert

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
SQUARE = {"height": 224, "width": 224}
COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True}
CROP = {"do_center_crop": True, "crop_size": SQUARE}
# (family, transformers' processor, what the published preprocessor_config.json says)
PROCESSORS = {
    "DINOv2": ("dinov2", "BitImageProcessorPil", COMMON | CROP | IMAGENET | {"size": {"shortest_edge": 256}, "resample": 3}),
    "DINOv3": ("dinov3", None, COMMON | IMAGENET | {"size": SQUARE, "resample": 2}),
    "ViT": ("vit", "ViTImageProcessorPil", COMMON | HALF | {"size": SQUARE, "resample": 2}),
    "DINO": ("vit", "ViTImageProcessorPil", COMMON | IMAGENET | {"size": SQUARE, "resample": 3}),
    "DeiT": ("deit", "DeiTImageProcessorPil", COMMON | CROP | IMAGENET | {"size": {"height": 256, "width": 256}, "resample": 3}),
    "MAE": ("mae", "ViTImageProcessorPil", COMMON | IMAGENET | {"size": SQUARE, "resample": 3}),
    "CLIP": ("clip", "CLIPImageProcessorPil", COMMON | CROP | CLIP | {"size": {"shortest_edge": 224}, "resample": 3}),
    "SigLIP": ("siglip", "SiglipImageProcessorPil", COMMON | HALF | {"size": SQUARE, "resample": 3}),
}


def photographs():
    """Real photographs cut to odd sizes, one smaller than the crop."""
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return [
        china.crop((0, 0, 639, 427)),
        flower.crop((11, 7, 342, 426)),
        china.crop((100, 100, 301, 237)),
        flower.crop((3, 0, 228, 225)),
    ]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels(name, tmp_path):
    family, processor, about = PROCESSORS[name]
    make(family, tmp_path, image_size=518 if family == "dinov2" else 224)
    kind = (processor or "DINOv3ViTImageProcessor").removesuffix("Pil")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | {"image_processor_type": kind}))
    encoder, report = convert(str(tmp_path))
    assert report.assumed == []
    ours = encoder.preprocess(photographs())
    if processor is None:
        theirs = [dinov3_reference(image, about) for image in photographs()]
    else:
        reference = getattr(transformers, processor).from_pretrained(tmp_path)
        theirs = [reference(images=image, return_tensors="np")["pixel_values"][0] for image in photographs()]
    std = np.array(about["image_std"])
    for a, b in zip(ours, theirs, strict=True):
        difference = np.abs(a - b.transpose(1, 2, 0)) * std  # in pixels of 0 ... 1
        assert difference.max() <= 1 / 255 + 1e-6


def dinov3_reference(image, about):
    """DINOv3's processor exists for torchvision only: scaled to 0 ... 1 first, then resized in floating point, antialiased."""
    import torch

    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None] / 255
    size = (about["size"]["height"], about["size"]["width"])
    pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0].numpy()
    mean, std = (np.array(about[key])[:, None, None] for key in ("image_mean", "image_std"))
    return (pixels - mean) / std


CENTRE = {"crop_size": 224, "do_center_crop": True}


@pytest.mark.parametrize(
    "family, about, crop, resize",
    [
        # Configurations from before sizes were dictionaries.
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, (224, 224), None),
        ("clip", CENTRE | {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224}, (224, 224), 224),
        ("deit", CENTRE | {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256}, (224, 224), (256, 256)),
    ],
)
def test_older_configurations(family, about, crop, resize, tmp_path):
    make(family, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | IMAGENET | {"resample": 3}))
    preprocessing = brh_jax.load(tmp_path).preprocessing
    assert (preprocessing.crop, preprocessing.resize) == (crop, resize)


def test_what_is_not_known_is_said(tmp_path):
    make("vit", tmp_path)
    _, report = convert(str(tmp_path))
    assert any(line.startswith("preprocessing {") for line in report.assumed)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 200}, "do_center_crop": False}))
    _, report = convert(str(tmp_path), image_size=224)
    assert "a centre crop of 200 x 200: the source's processor lets the size vary" in report.assumed
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 200}}))
    with pytest.raises(UserError, match="gives the size {'longest_edge': 200}, expected height and width or shortest_edge"):
        convert(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224, "rescale_factor": 1 / 127.5}))
    with pytest.raises(UserError, match="scales pixels by 0.0078.*, expected 1/255"):
        convert(str(tmp_path))


def test_defaults_of_a_processor_are_those_of_its_class(tmp_path):
    """A configuration that names only the processor."""
    for family, name in (("vit", "ViT"), ("deit", "DeiT"), ("clip", "CLIP"), ("siglip", "Siglip"), ("dinov2", "Bit")):
        folder = tmp_path / name
        make(family, folder)
        reference = getattr(transformers, f"{name}ImageProcessorPil")
        about = {"image_processor_type": f"{name}ImageProcessor", "size": reference.size}
        about |= {"crop_size": reference.crop_size} if getattr(reference, "crop_size", None) else {}
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
        found = brh_jax.load(folder).preprocessing
        assert found.mean == pytest.approx(tuple(reference.image_mean)), name
        assert found.std == pytest.approx(tuple(reference.image_std)), name
        assert found.interpolation == {2: "bilinear", 3: "bicubic"}[int(reference.resample)], name
        assert (found.resize is None) == (not getattr(reference, "do_center_crop", False)), name


def test_processors_of_several_kinds(tmp_path):
    """transformers 5 keeps an image processor inside processor_config.json."""
    make("clip", tmp_path)
    inner = COMMON | CROP | CLIP | {"size": {"shortest_edge": 240}, "resample": 3, "image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor", "image_processor": inner}))
    assert brh_jax.load(tmp_path).preprocessing.resize == 240
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner | {"resample": 5}}))
    with pytest.raises(UserError, match="asks for the filter 5"):
        brh_jax.load(tmp_path)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(UserError, match="processor_config.json holds a list, expected an object"):
        brh_jax.load(tmp_path)

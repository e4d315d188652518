"""Settings are stated once, read with one clear message for what is wrong, and explained."""

import dataclasses
import re

import pytest
from ml_collections import ConfigDict

from brh_jax.errors import UserError, expect_positive
from experiments.configs import default, quickstart
from experiments.explain import explain
from experiments.pipeline import read_settings, settings_kinds
from experiments.settings import flat, merged_defaults, read, renamed, without_effect


@dataclasses.dataclass(frozen=True)
class Inner:
    """Attributes:
    size: how large.
    """

    size: float = 1.0

    def __post_init__(self):
        expect_positive(self, "size")


@dataclasses.dataclass(frozen=True)
class Outer:
    """Attributes:
    steps, more: how many.
    """

    steps: int = 3
    more: tuple[int, ...] = (1, 2)
    threads: int = without_effect(8)
    inner: Inner = Inner()


def test_every_setting_has_one_default_and_is_explained():
    merged = merged_defaults(settings_kinds())
    assert merged["distill"]["stage1"]["token_weights"] == (0.34, 0.33, 0.33)
    assert default.get_config().to_dict() == ConfigDict(merged).to_dict()
    unexplained = re.findall(r"--(config\S+?)=.*(?:\n(?=--)|\Z)", explain(settings_kinds()))
    assert unexplained == []


def test_two_defaults_of_one_setting_are_a_bug():
    other = dataclasses.make_dataclass("Other", [("steps", int, 4)], frozen=True)
    with pytest.raises(ValueError, match="config.steps has two defaults: 3 and 4"):
        merged_defaults([Outer, other])


def test_reading_converts_and_fills_in():
    settings = read(Outer, ConfigDict({"more": [5], "inner": {"size": 2}}))
    assert settings == Outer(more=(5,), inner=Inner(2.0))
    assert flat(settings) == {"steps": 3, "more": [5], "inner.size": 2.0}  # what has no effect is no part of it
    assert flat(settings, all_fields=True)["threads"] == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1.5}, "config.steps is 1.5: expected a whole number"),
        ({"steps": True}, "config.steps is True: expected a whole number"),
        ({"inner": {"size": -1}}, r"config.inner.size is -1.0: expected a positive number"),
        ({"inner": {"size": float("nan")}}, r"config.inner.size is nan: expected a positive number"),
        ({"inner": 3}, r"config.inner is 3: expected a section of settings, size"),
        ({"more": 3}, r"config.more is 3: expected several values, such as"),
    ],
)
def test_wrong_values_are_named_in_full(given, message):
    with pytest.raises(UserError, match=message):
        read(Outer, ConfigDict(given))


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("distill", "batch_sise", 3, "unknown setting config.distill.batch_sise: did you mean batch_size"),
        ("distill", "log_every", 3, "config.distill.log_every is config.loop.log_every now"),
        ("distill", "pieces", 5, "config.distill.pieces is 5: expected a divisor of the batch, 64"),
        ("teacher", "vit", {"num_heads": 0}, "config.teacher.vit.num_heads is 0: expected a positive number"),
        ("teacher", "vit", {"num_heads": 7}, "config.teacher.vit: dim 192 is not a multiple of num_heads 7"),
        ("data", "crop_scale", (1.0, 0.5), r"config.data.crop_scale is \(1.0, 0.5\): expected two positive numbers"),
        ("data", "crop_scale", ("a", "b"), r"config.data.crop_scale is \('a', 'b'\): expected two positive numbers"),
        ("data", "crop_scale", (0.5,), r"config.data.crop_scale is \(0.5,\): expected two positive numbers"),
        ("data", "crop_scale", (0.5, 1.5), "expected shares of an image's area, at most 1"),
        ("data", "crop_ratio", (1.0, float("inf")), r"config.data.crop_ratio is \(1.0, inf\): expected two positive numbers"),
        ("data", "crop_ratio", (float("nan"), 1.0), r"config.data.crop_ratio is \(nan, 1.0\): expected two positive numbers"),
        ("data", "image_size", -3, "config.data.image_size is -3: expected 0 or more"),
        ("data", "workers", -1, "config.data.workers is -1: expected 0 or more"),
        ("data", "threads", 0, "config.data.threads is 0: expected a positive number"),
    ],
)
def test_a_configuration_file_that_is_wrong(section, name, value, message):
    config = quickstart.get_config().unlock()
    config[section][name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        read_settings(config)


def test_a_study_may_have_a_section_of_its_own():
    config = quickstart.get_config().unlock()
    config.study = ConfigDict({"group": "trained"})
    read_settings(config)


def test_moved_settings_are_known():
    assert renamed("distill.log_every") == "loop.log_every" and renamed("tensorboard") == "loop.tensorboard"
    assert renamed("quick.train") == "feature_probe.train" and renamed("distill.batch_size") is None

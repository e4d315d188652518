"""Settings are stated once, read with one clear message for what is wrong, and explained."""

import dataclasses
import functools
import re

import pytest
from ml_collections import ConfigDict

from brh_jax.errors import UserError, expect_positive
from experiments.configs import default, quickstart
from experiments.explain import explain
from experiments.pipeline import read_settings, settings_kinds
from experiments.records import Record, differing_settings
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
    steps, more, pair, free, threads: how many.
    """

    steps: int = 3
    more: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.5, 1.0)
    free: float = 0.0
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
    settings = read(Outer, ConfigDict({"steps": 1e2, "more": [5, 1e1], "pair": [1, 2], "inner": {"size": 2}}))
    assert settings == Outer(100, more=(5, 10), pair=(1.0, 2.0), inner=Inner(2.0))
    whole = {"steps": 100, "more": [5, 10], "pair": [1.0, 2.0], "free": 0.0, "inner.size": 2.0}
    assert flat(settings) == whole  # what has no effect is no part of it
    assert flat(settings, all_fields=True)["threads"] == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1.5}, "config.steps is 1.5: expected a whole number"),
        ({"steps": True}, "config.steps is True: expected a whole number"),
        ({"inner": {"size": -1}}, r"config.inner.size is -1.0: expected a positive number"),
        ({"inner": {"size": float("nan")}}, r"config.inner.size is nan: expected a positive number"),
        ({"steps": 2**40}, "config.steps is 1099511627776: expected a whole number"),
        ({"more": (1, "two")}, r"config.more is \(1, 'two'\): expected several whole numbers"),
        ({"pair": (1.0,)}, r"config.pair is \(1.0,\): expected 2 numbers, such as \(0.5, 1.0\)"),
        ({"pair": (1.0, float("inf"))}, r"config.pair is \(1.0, inf\): expected finite numbers"),
        ({"free": float("nan")}, "config.free is nan: expected finite numbers"),
        ({"inner": 3}, r"config.inner is 3: expected a section of settings, size"),
        ({"more": 3}, r"config.more is 3: expected several whole numbers, such as \(2, 3\)"),
    ],
)
def test_wrong_values_are_named_in_full(given, message):
    with pytest.raises(UserError, match=message):
        read(Outer, ConfigDict(given))


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("distill", "batch_sise", 3, "unknown setting config.distill.batch_sise: did you mean config.distill.batch_size[?] "),
        ("distill", "log_every", 3, "config.distill.log_every is config.loop.log_every now"),
        ("distill", "pieces", 5, "config.distill.pieces is 5: expected a divisor of the batch, 64"),
        ("teacher", "vit", {"num_heads": 0}, "config.teacher.vit.num_heads is 0: expected a positive number"),
        ("teacher", "vit", {"num_heads": 7}, "config.teacher.vit: dim 192 is not a multiple of num_heads 7"),
        ("data", "crop_scale", (1.0, 0.5), r"config.data.crop_scale is \(1.0, 0.5\): expected two positive numbers"),
        *(
            (part, name, value, f"config.{part}.{name} is {value}: expected a positive number")
            for part, name in (("probe", "learning_rate"), ("segmentation", "learning_rate"), ("depth", "clip_norm"))
            for value in (float("nan"), float("inf"), -1.0)
        ),
        ("teacher", "train", {"learning_rate": float("nan")}, "config.teacher.train.learning_rate is nan: expected a positive"),
        ("distill", "stage1", {"learning_rate": -1.0}, "config.distill.stage1.learning_rate is -1.0: expected a positive"),
        ("distill", "stage2", {"token_weights": (0.0, 0.0, 0.0)}, r"stage2.token_weights is \(0.0, 0.0, 0.0\): expected three"),
        ("distill", "stage2", {"token_weights": (1.0, float("nan"), 1.0)}, "stage2.token_weights is .*: expected three"),
        ("teacher", "vit", {"drop_path": 1.0}, "config.teacher.vit.drop_path is 1.0: expected a probability"),
        ("teacher", "vit", {"num_registers": -1}, "config.teacher.vit.num_registers is -1: expected 0 or more"),
        ("teacher", "vit", {"layer_norm_eps": float("nan")}, "config.teacher.vit.layer_norm_eps is nan: expected a positive"),
        ("raptor", "layer_scale_init", float("nan"), "config.raptor.layer_scale_init is nan: expected 0 or more"),
        ("phases", "min_length", 0, "config.phases.min_length is 0: expected a positive number"),
        ("phases", "seed", -1, "config.phases.seed is -1: expected 0 or more"),
        ("probe", "num_train", -1, "config.probe.num_train is -1: expected 0 or more"),
        ("probe", "learning_rates", (1e-3, float("inf")), r"config.probe.learning_rates is \(0.001, inf\): expected positive"),
        ("segmentation", "num_classes", -1, "config.segmentation.num_classes is -1: expected 0 or more"),
        ("segmentation", "crop_scale", (1.0, 0.5), "config.segmentation.crop_scale is .*: expected two shares"),
        ("depth", "crop_size", (0, 560), r"config.depth.crop_size is \(0, 560\): expected \(height, width\)"),
        ("depth", "variance_focus", 2.0, "config.depth.variance_focus is 2.0: expected a share"),
        ("feature_probe", "neighbours", (0,), r"config.feature_probe.neighbours is \(0,\): expected positive numbers"),
        ("dynamics", "relative_sizes", (float("inf"),), r"config.dynamics.relative_sizes is \(inf,\): expected positive"),
        ("data", "crop_scale", ("a", "b"), r"config.data.crop_scale is \('a', 'b'\): expected 2 numbers"),
        ("data", "crop_scale", (0.5,), r"config.data.crop_scale is \(0.5,\): expected 2 numbers"),
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


def test_every_number_that_is_not_one_is_refused():
    """Whatever its section: NaN and infinity, also within several values."""
    numbers = [
        (name, value)
        for kind in settings_kinds()
        for name, value in flat(kind(), all_fields=True).items()
        if isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float))
    ]
    assert len(numbers) > 30
    for name, there in numbers:
        for value in (float("nan"), float("inf"), -float("inf")):
            config = default.get_config().unlock()
            *sections, field = name.split(".")
            place = functools.reduce(getattr, sections, config)
            place[field] = (value, *there[1:]) if isinstance(there, list) else value
            with pytest.raises(UserError):
                read_settings(config)


def test_a_configuration_that_cannot_be_kept_is_refused():
    config = quickstart.get_config().unlock()
    config.study = ConfigDict({"group": float("nan")})
    with pytest.raises(UserError, match="must be made of texts, finite numbers"):
        read_settings(config)
    config.study = ConfigDict({"group": object()})
    with pytest.raises(UserError, match="must be made of texts"):
        read_settings(config)
    config.study = ConfigDict({})
    config.study.unlock().itself = config.study
    with pytest.raises(UserError, match="holds itself"):
        read_settings(config)


def test_a_study_may_have_a_section_of_its_own():
    config = quickstart.get_config().unlock()
    config.study = ConfigDict({"group": "trained"})
    read_settings(config)


def test_moved_settings_are_known():
    assert renamed("distill.log_every") == "loop.log_every" and renamed("tensorboard") == "loop.tensorboard"
    assert renamed("quick.train") == "feature_probe.train" and renamed("distill.batch_size") is None


def test_a_run_from_before_a_setting_counts_as_made_with_its_default():
    before = Record({name: value for name, value in flat(Outer()).items() if name != "free"})
    assert differing_settings(before, Outer()) == {}
    assert differing_settings(before, Outer(free=0.5)) == {"free": "free: 0.0 there, 0.5 here"}
    assert differing_settings(Record(flat(Outer()) | {"gone": 1}), Outer()) == {"gone": "gone: 1 there, nothing here"}

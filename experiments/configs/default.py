"""Every setting there is, with the paper's values. Other configurations start from this one and change what they need.

    python -m experiments.explain          prints them all, and what each of them means

Each is stated once, in the dataclass of the stage that uses it: `experiments/stages/NAME/`. Not run by itself: it names no
teacher and no data.
"""

from ml_collections import ConfigDict

from brh_jax.errors import UserError
from experiments.pipeline import settings_kinds
from experiments.settings import merged_defaults


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. Takes no argument."""
    if arg:
        raise UserError(f"configs/default.py takes no argument, got {arg!r}")
    return ConfigDict(merged_defaults(settings_kinds())).lock()

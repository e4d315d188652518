"""What a conversion takes at its peak, in a process of its own.

BRH_JAX_TEST_MEMORY_ARCH=vitg14 python -m pytest tests/weights_convert/test_memory.py -rP    # 4.5 GB of random weights
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from brh_jax.models import Encoder, ViT, architecture
from brh_jax.models.encoder import init_params
from brh_jax.preprocessing import Preprocessing
from weights_convert import export

ARCH = os.environ.get("BRH_JAX_TEST_MEMORY_ARCH", "vitb14")
# Anonymous memory: files that are mapped for reading can be dropped at any time.
MEASURE = """
import sys, threading, time
import jax, jax.numpy as jnp
from brh_jax.models import store
from brh_jax.models.encoder import count_params
from weights_convert import convert
jnp.zeros(1).block_until_ready()
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
before = peak = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
encoder, report = convert(sys.argv[1])
store.save(encoder, sys.argv[2], report._asdict())
weights = 4 * count_params(encoder.params)
print(f"{weights / 1e9:.2f} GB of weights: peak {(peak - before) / 1e9:.2f} GB, {(peak - before) / weights:.2f} times them")
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="measures as Linux tells it")
def test_a_conversion_takes_less_than_twice_its_weights(tmp_path):
    config = architecture(ARCH).config
    image = jax.ShapeDtypeStruct((1, 14, 14, 3), np.float32)
    shapes = jax.eval_shape(functools.partial(init_params, ViT(config)), jax.random.key(0), image)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    export.write(Encoder(config, params, Preprocessing((224, 224), 256), name="random"), tmp_path / "source")
    del params
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "source"), str(tmp_path / "target")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    assert float(result.stdout.split(", ")[1].split()[0]) < 2

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np


def test_sums_of_products_are_right():
    """Wrong by 40 % in jaxlib 0.10.2 on CPUs unless one of its fusions is switched off."""

    def normalize(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    x = jax.random.normal(jax.random.key(0), (8, 19, 16))
    together = jax.jit(jax.vmap(jax.jacfwd(normalize)))(x)
    np.testing.assert_allclose(together, np.stack([jax.jacfwd(normalize)(image) for image in x]), atol=1e-5)


def run(code, flags=""):
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


BROKEN = "import jaxlib; jaxlib.__version__ = '0.10.2'; "


def test_the_wrong_fusions_are_switched_off_in_the_versions_that_have_them():
    show = "import brh_jax, os; print(os.environ['XLA_FLAGS'])"
    added = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    assert run(BROKEN + show, "--xla_force_host_platform_device_count=2").stdout.split()[1:] == [added]
    assert run("import jaxlib; jaxlib.__version__ = '0.10.1'; " + show).stdout.strip() == ""
    own = "--xla_cpu_experimental_ynn_fusion_type="
    assert run(BROKEN + show, own).stdout.strip() == own


def test_a_warning_where_jax_was_in_use_before():
    late = run(BROKEN + "import jax; jax.devices(); import brh_jax")
    assert "import brh_jax before jax is used" in late.stderr
    assert "wrongly" not in run(BROKEN + "import jax; import brh_jax; jax.devices()").stderr

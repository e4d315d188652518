"""A converted layer's Jacobian against the reference's, by torch.func."""

import jax
import numpy as np
import torch
from references import make
from test_transformers import images
from torch.func import jacrev

from brh_jax import dynamics
from weights_convert import convert


def test_jacobian_of_a_dinov2_layer(tmp_path):
    with jax.enable_x64(True):
        model = make("dinov2", tmp_path, dtype=torch.float64, patch_size=14, image_size=28)
        encoder, _ = convert(str(tmp_path), dtype=np.float64)
        encoder = encoder.at_size(28)
        states, layer = encoder.trajectory(images(28, 28, np.float64)[:1]), 1
        size = states.shape[2] * states.shape[3]
        system, reference = encoder.system(), model.encoder.layer[layer]

        def step(state):
            out = reference(state[None])
            return (out if torch.is_tensor(out) else out[0])[0]

        with torch.no_grad():
            theirs = jacrev(step)(torch.from_numpy(np.array(states[layer, 0]))).numpy().reshape(size, size)
        found = dynamics.jacobian_singular_values(system, states[layer], layer, 8, num_steps=size)
        np.testing.assert_allclose(found.values[0], np.linalg.svd(theirs)[1][:8], rtol=1e-9)
        block = dynamics.jacobian_block(system, states[layer], layer, "cls", "cls")
        dim = states.shape[3]
        np.testing.assert_allclose(block[0], theirs[:dim, :dim], rtol=1e-8, atol=1e-10)
        eigenvalues = dynamics.jacobian_eigenvalues(system, states[layer], layer, 4, num_steps=size).values[0]
        moduli = np.sort(np.abs(np.linalg.eigvals(theirs)))[::-1]
        np.testing.assert_allclose(np.abs(eigenvalues), moduli[:4], rtol=1e-8)

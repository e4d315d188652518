"""Linear centred kernel alignment between layers, over groups of images that are never held together."""

import numpy as np

from brh_jax.types import Array


def hsic(features: Array) -> np.ndarray:
    """Unbiased Hilbert-Schmidt independence criterion between the linear kernels of layers, over one group of images.

    With K = X X^T and its diagonal set to zero, of n images (Song et al., 2012, JMLR 13, equation 5):
    HSIC(K, M) = [tr K M + (1^T K 1)(1^T M 1) / ((n - 1)(n - 2)) - 2 (1^T K M 1) / (n - 2)] / (n (n - 3)).

    Args:
        features: `[..., layers, images, dim]`, four images or more.

    Returns:
        `[..., layers, layers]` float64.

    Raises:
        ValueError: fewer than four images.
    """
    features = np.asarray(features, np.float64)
    n = features.shape[-2]
    if n < 4:
        raise ValueError(f"a group of {n} images: the unbiased HSIC needs four or more")
    features = features - features.mean(-2, keepdims=True)  # changes nothing but rounding: the estimate does not see the mean
    kernels = features @ np.swapaxes(features, -1, -2)
    kernels[..., np.arange(n), np.arange(n)] = 0.0
    rows = kernels.sum(-1)
    total = rows.sum(-1)
    flat = kernels.reshape(*kernels.shape[:-2], n * n)
    trace = flat @ np.swapaxes(flat, -1, -2)
    cross = rows @ np.swapaxes(rows, -1, -2)
    outer = total[..., :, None] * total[..., None, :]
    return (trace + outer / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def alignment(mean_hsic: np.ndarray) -> np.ndarray:
    """CKA(l, m) = HSIC(l, m) / sqrt(HSIC(l, l) HSIC(m, m)), of sums or means over groups (Nguyen et al., 2021, arXiv 2010.15327).

    The estimates of HSIC are unbiased whatever the size of the groups; of many groups the ratio is that of all images together.
    It can lie a little above one; a layer whose states do not differ between images is aligned with none.

    Args:
        mean_hsic: `[..., layers, layers]`.
    """
    own = np.diagonal(mean_hsic, axis1=-2, axis2=-1)
    scale = np.sqrt(np.maximum(own, 0.0))
    scale = scale[..., :, None] * scale[..., None, :]
    return np.divide(mean_hsic, scale, out=np.zeros_like(mean_hsic), where=scale != 0)  # NaN stays NaN

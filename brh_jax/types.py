"""Names for the arrays that pass between rooms, with their shapes; checked at run time in the tests.

A shape is read once per call: `dim` is the same number in every argument of one function. Arrays are numpy's or jax's.
"""

import os

import jax
import numpy as np
from jaxtyping import Bool, Complex, Float, Integer, PRNGKeyArray, UInt8

Array = jax.Array | np.ndarray

State = Float[Array, "batch tokens dim"]
Trajectory = Float[Array, "states batch tokens dim"]  # index 0 the embedded tokens, so `states` is depth + 1
# Batches of a stream are of different sizes, so the number of images is no name that all share.
StateBatch = Float[Array, "_ tokens dim"]
TrajectoryBatch = Float[Array, "_ _ tokens dim"]
LabelBatch = Integer[Array, " _"]
ValidBatch = Bool[Array, " _"]
TokenState = Float[Array, "tokens dim"]  # of one image
Directed = Float[Array, "... dim"]  # any number of vectors
Images = Float[Array, "batch height width channels"]  # preprocessed
Pixels = UInt8[Array, "batch height width channels"]  # as decoded
Features = Float[Array, "batch features"]
Dissimilarity = Float[Array, "depth depth"]  # between the outputs of layers
Labels = Integer[Array, " batch"]
Valid = Bool[Array, " batch"]  # which images of a padded batch count
CurveValues = Float[Array, "points *images"]
Projection = Float[Array, "states images components"]
LayerSpectra = Complex[Array, "depth images values"]
TokenMatrix = Float[Array, "tokens tokens"]  # row = output, column = input
RandomKey = PRNGKeyArray

PathLike = str | os.PathLike[str]
Size = int | tuple[int, int]  # of an image in pixels: of a square one, or (height, width)

States = Float[Array, "*lead tokens dim"]
Outputs = Float[Array, "depth batch tokens dim"]  # of the layers: a trajectory without a_0
HeadTokens = Float[Array, "batch heads tokens head_dim"]  # queries, keys or values
AttentionWeights = Float[Array, "batch heads tokens tokens"]  # row = query, column = key; rows sum to one
AttentionMaps = Float[Array, "depth batch heads tokens tokens"]
Turn = Float[Array, "patches head_dim"]
Rotations = tuple[Turn, Turn]  # cosines and sines of the patches' angles
Grid = tuple[int, int] | None  # (rows, columns) of patches; None for a square
Step = int | Array  # of training, a number or traced
Layer = int | np.integer | Integer[Array, ""]  # from 0

"""Packaging of brh-jax: `pip install .` gives brh_jax, experiments and weights_convert."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="brh-jax",
    version="0.1.0",
    description="Block-recurrent dynamics in vision transformers, in JAX: phases, Raptor distillation, depth dynamics",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["brh_jax*", "experiments*", "weights_convert*"]),
    package_data={"brh_jax.report": ["*.html.j2"]},
    # Lower bounds are the versions the tests run on; there is no known break above them.
    install_requires=[
        "absl-py>=2.3",
        "flax>=0.12.0",
        "grain>=0.2.14",
        "huggingface_hub>=1.0",
        "jax>=0.10.0",
        "jinja2>=3.1",
        "matfree>=0.6.3",
        "matplotlib>=3.10",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=11.0",
        "safetensors>=0.6",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "tensorboardX>=2.6.4",
        "threadpoolctl>=3.5",
    ],
    extras_require={
        # TensorFlow datasets as array_record files; TensorFlow itself is never imported.
        "tfds": ["tensorflow-datasets>=4.9.8", "array-record>=0.8"],
        # nyu_depth_v2_labeled.mat as released.
        "nyu": ["h5py>=3.11"],
        # Weights that come as .pth files or ONNX graphs.
        "convert": ["torch>=2.6", "onnx>=1.18"],
        "test": [
            "array-record>=0.8",
            "chex>=0.1.91",
            "h5py>=3.11",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "onnx>=1.18",
            "onnxruntime>=1.22",
            "pydmd>=2025.8.1",
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "tensorflow-datasets>=4.9.8",
            "torch==2.13.0",
            "transformers>=5.0",
        ],
    },
)

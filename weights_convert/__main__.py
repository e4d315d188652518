"""python -m weights_convert SOURCE TARGET: converts pretrained weights into a folder that brh_jax.load reads.

With --to-hf the other way: SOURCE is anything that brh_jax.load takes, TARGET becomes a repository for the hub.
"""

import argparse
import sys
from collections.abc import Sequence

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.models import store

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 2 for what cannot be converted, 1 where --check finds a difference."""
    parser = Parser("weights_convert", __doc__)
    parser.add_argument("source", help="hf:organisation/model, a folder, or a .safetensors, .pth or .onnx file")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--arch", default="", help="refuse weights of any other architecture, for example vitb14_reg")
    parser.add_argument(
        "--image-size", type=_size, default=None, help="pixels, a number or HEIGHTxWIDTH; the source's own by default"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the parameters")
    parser.add_argument("--num-heads", type=_count, default=None, help="where the source cannot tell")
    parser.add_argument("--partition", type=_lengths, default=None, help="of a Raptor's bare state dict, for example 7,3,2")
    parser.add_argument("--teacher", default=None, help="of a Raptor's bare state dict: the ViT that it was distilled from")
    parser.add_argument("--check", action="store_true", help="compare every state with the reference implementation")
    parser.add_argument(
        "--to-hf", action="store_true", help="write a repository for the hub: state dict, config.json, model card"
    )
    return run_command(parser, _run, argv)


def _run(arguments) -> int:
    from brh_jax.loading import load
    from weights_convert import export
    from weights_convert.check import compare
    from weights_convert.convert import convert

    teacher = None if arguments.teacher is None else load(arguments.teacher)
    bare = {"partition": arguments.partition, "num_heads": arguments.num_heads, "teacher": teacher}
    if arguments.to_hf:
        if arguments.check or arguments.arch or arguments.dtype != "float32":
            raise UserError("--to-hf writes an encoder as it is: --check, --arch and --dtype belong to its conversion")
        encoder = load(arguments.source, image_size=arguments.image_size, **bare)
        folder = export.write(encoder, arguments.target)
        print(f"{encoder.name}: wrote {folder}; brh_jax.load reads it, also from the hub once it is there")
        return 0
    encoder, report = convert(arguments.source, arch=arguments.arch, image_size=arguments.image_size, **bare)
    print("\n".join(report.lines(encoder)), flush=True)
    if arguments.check:
        comparison = compare(arguments.source, encoder)
        print("\n".join(comparison.lines()), flush=True)
        if not comparison.passed:
            print("error: nothing was written", file=sys.stderr)
            return 1
    if arguments.dtype != "float32":
        encoder = encoder.replace(params=_cast(encoder.params, arguments.dtype))
    folder = store.save(encoder, arguments.target, report._asdict())
    print(f"wrote {folder}")
    return 0


def _cast(params, dtype: str):
    """Parameters in another precision. Raises UserError where they are beyond its range."""
    import jax
    import jax.numpy as jnp

    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)
    beyond = [path for path, leaf in jax.tree_util.tree_leaves_with_path(cast) if not jnp.isfinite(leaf).all()]
    if beyond:
        names = ", ".join(jax.tree_util.keystr(path, simple=True, separator="/") for path in beyond)
        raise UserError(f"{names} hold values beyond {dtype}: nothing was written, give --dtype=bfloat16 or float32")
    return cast


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of heads: expected 1 or more")
    return int(text)


def _size(text: str):
    try:
        numbers = tuple(int(n) for n in text.lower().split("x"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size: expected 224 or 224x336")
    return numbers[0] if len(numbers) == 1 else numbers


def _lengths(text: str):
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no partition: expected layers of each phase, for example 7,3,2") from None


if __name__ == "__main__":
    sys.exit(main())

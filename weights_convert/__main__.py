"""python -m weights_convert SOURCE TARGET: converts pretrained weights into a folder that brh_jax.load reads."""

import argparse
import sys

from brh_jax.errors import UserError
from brh_jax.models import store
from weights_convert.convert import convert


def main(argv=None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__)
    parser.add_argument("source", help="hf:organisation/model, a folder, or a .safetensors, .pth or .onnx file")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("--arch", default="", help="refuse weights of any other architecture, for example vitb14_reg")
    parser.add_argument("--image-size", type=int, default=None, help="pixels, where not the source's own")
    arguments = parser.parse_args(argv)
    try:
        encoder, report = convert(arguments.source, arch=arguments.arch, image_size=arguments.image_size)
        folder = store.save(encoder, arguments.target, report._asdict())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([*report.lines(encoder), f"wrote {folder}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

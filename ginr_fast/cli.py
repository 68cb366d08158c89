"""The command line: ``ginr-fast COMMAND …``.

Each command is a module of :mod:`ginr_fast.commands` with a ``main(arguments)``; only the one
called is imported, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

COMMANDS = {
    "train": "train a model by a recipe, or resume its training",
    "eval": "PSNR and SSIM of a trained model on held-out images",
    "export-latents": "encode a data set by a trained model, for latent diffusion",
    "reconstruct": "encode an image of any size and decode it at any scale",
    "render": "draw what a trained model knows: orbits of scenes, an mNIF's images and meshes",
    "view": "look at images, scenes or shapes in a browser: zoom in, orbit, interpolate",
    "generate": "draw samples from a generative model, at any resolution",
    "judge": "score a generative model's samples: FID, precision, recall, copies, latency",
    "interpolate": "draw what lies between four instances of an mNIF, or between four samples",
    "analyse": "what tokens and attention do, how alike an mNIF's bases are, what it costs",
    "ablate": "train variants of a recipe under one budget, and compare them",
    "compare": "train LA-GINR, IPC and TransINR under one budget, and compare them",
    "convert": "turn checkpoints of published code into ours, and back",
    "make-data": "make a small data set: ray-traced cars, voxel shapes, audio clips",
    "demo": "train a tiny model on photographs, show it, and time the decoder",
    "bench": "print and draw the results of the benchmarks",
    "info": "versions, devices, the compiled extension and the backends",
}
_MODULES = {"eval": "evaluate", "export-latents": "export_latents", "make-data": "make_data"}
# By name, so that torch need not be imported to print the usage.
_USER_ERRORS = ("BackendError", "OutOfMemoryError")
DEBUG_VARIABLE = "GINR_FAST_DEBUG"


def usage() -> str:
    """What ``ginr-fast --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ginr-fast COMMAND [options]",
            "",
            "Fast, exact, differentiable decoders for generalizable implicit neural",
            "representations, and the systems built on them.",
            "",
            "commands:",
            *lines,
            "",
            "ginr-fast COMMAND --help lists a command's options.",
            f"{DEBUG_VARIABLE}=1 shows where an error came from.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its name and arguments; those of the process if None.

    Returns:
        The exit status: 0, 2 after an error of the user's, 130 after an interrupt.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from ginr_fast import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        return _fail(f"no command {name!r}; expected one of {', '.join(COMMANDS)}")
    try:
        module = import_module(f"ginr_fast.commands.{_MODULES.get(name, name)}")
        with plain_warnings():
            module.main(rest)
    except KeyboardInterrupt:
        print("ginr-fast: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ginr_fast"):
            raise
        extras = "pip install 'ginr-fast[train,generate,bench,view]'"
        return _fail(f"{error.name} is not installed; {extras}", error)
    except (ValueError, OSError) as error:
        return _fail(" ".join(str(error).split()) or type(error).__name__, error)
    except RuntimeError as error:
        if type(error).__name__ not in _USER_ERRORS:
            raise
        return _fail(" ".join(str(error).split()), error)
    return 0


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line: what it says is for the user, where it was raised is not."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"ginr-fast: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _fail(message: str, error: Exception | None = None) -> int:
    if error is not None and os.environ.get(DEBUG_VARIABLE):
        raise error
    print(f"ginr-fast: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""The photographs that come with scikit-image: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ginr_fast.data.images import ImageFiles

# One person, one still life, one animal: three kinds of content, from cameras and scenes that no
# training photograph shares.
HELD_OUT = ("astronaut.png", "coffee.png", "chelsea.png")
TRAIN = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


def photos() -> ImageFiles:
    """The photographs inside scikit-image's wheel, three of them held out.

    Held out are an astronaut's portrait, a cup of coffee and a cat; training sees a motorcycle in
    a workshop (a stereo pair, both on the same side of the split), a rocket, a cameraman, coins,
    brick, grass, gravel, the Moon, galaxies, a retina and stained tissue.

    Raises:
        ValueError: scikit-image is not installed, or does not hold one of the photographs.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "data: the photographs come with scikit-image, which is not installed; "
            "install ginr-fast[train], or name a folder of images"
        )
    root = Path(spec.origin).parent / "data"
    missing = [name for name in (*TRAIN, *HELD_OUT) if not (root / name).is_file()]
    if missing:
        raise ValueError(f"data: scikit-image at {root} lacks {', '.join(missing)}")
    return ImageFiles(
        root, tuple(root / name for name in TRAIN), tuple(root / name for name in HELD_OUT)
    )

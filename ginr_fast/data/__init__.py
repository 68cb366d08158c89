"""Images to train on and to evaluate with: shipped photographs, or any folder."""

from ginr_fast.data.folder import folder
from ginr_fast.data.images import BrokenImageError, ImageFiles, load_image
from ginr_fast.data.photos import photos
from ginr_fast.data.views import HeldOutViews, TrainingViews, ViewConfig

__all__ = [
    "BrokenImageError",
    "HeldOutViews",
    "ImageFiles",
    "TrainingViews",
    "ViewConfig",
    "folder",
    "load_image",
    "photos",
]

"""What models are trained on: photographs, folders of images, scenes with poses, voxel shapes."""

from ginr_fast.data.cars import CarsConfig, make_cars
from ginr_fast.data.cifar import BrokenCifarError, cifar, is_cifar, write_cifar
from ginr_fast.data.episodes import (
    Episode,
    EvaluationScene,
    TargetView,
    episode,
    evaluation_views,
    target_view,
)
from ginr_fast.data.folder import folder
from ginr_fast.data.images import BrokenImageError, ImageFiles, StoredImage, load_image
from ginr_fast.data.learnit import LearnItScenes
from ginr_fast.data.order import instance_order
from ginr_fast.data.photos import photos
from ginr_fast.data.ray_batches import RayBatch, ray_batch
from ginr_fast.data.scenes import BrokenSceneError, Scene, Scenes
from ginr_fast.data.shapes import ShapesConfig, make_shapes
from ginr_fast.data.srn import SrnScenes
from ginr_fast.data.views import HeldOutViews, TrainingViews, ViewConfig
from ginr_fast.data.voxel_points import BrokenVoxelsError, PointBatch, VoxelPoints

__all__ = [
    "BrokenCifarError",
    "BrokenImageError",
    "BrokenSceneError",
    "BrokenVoxelsError",
    "CarsConfig",
    "Episode",
    "EvaluationScene",
    "HeldOutViews",
    "ImageFiles",
    "LearnItScenes",
    "PointBatch",
    "RayBatch",
    "Scene",
    "Scenes",
    "ShapesConfig",
    "SrnScenes",
    "StoredImage",
    "TargetView",
    "TrainingViews",
    "ViewConfig",
    "VoxelPoints",
    "cifar",
    "episode",
    "evaluation_views",
    "folder",
    "instance_order",
    "is_cifar",
    "load_image",
    "make_cars",
    "make_shapes",
    "photos",
    "ray_batch",
    "target_view",
    "write_cifar",
]

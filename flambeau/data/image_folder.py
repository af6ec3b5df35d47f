"""A folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval
from torch.utils.data import Subset

from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.transforms import NormalizeBytes, OnInput
from flambeau.errors import MissingExtraError, UsageError
from flambeau.registry import register


@register.data("image_folder")
class ImageFolder(DataModule):
    """A folder of images with one folder a class, as torchvision's ImageFolder reads it.

    Args:
        root: holds `train/CLASS/*.jpg`, `val/` and `test/` likewise if there are; or the classes' folders themselves.
        image_size: side of the images as the model gets them.
        val_fraction: share of the training images that is held out if there is no `val/`; stratified, a function of
            the seed. The images of `test/` are never used for validation.
        test_fraction: likewise for the test, if there is no `test/`.
        augment: training images are random crops, resized, and mirrored at random; else they are as in evaluation:
            the shorter side resized to 8/7 of `image_size`, then the centre.
        mean: of each channel, values in 0..1; default: ImageNet's.
        std: standard deviation of each channel, likewise.
        seed: what the split is a function of.

    Images reach the device as bytes, uint8 (3, image_size, image_size), and are normalised there.
    """

    num_classes: int
    in_channels: int = 3
    image_size: int
    input_shape: tuple[int, int, int]
    num_features: int
    class_names: list[str]

    def __init__(
        self,
        root: Path,
        image_size: Annotated[int, Ge(1)] = 224,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        augment: bool = True,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        seed: int = 0,
    ) -> None:
        folder, v2 = torchvision("datasets").ImageFolder, torchvision("transforms.v2")
        root = Path(root)
        if not root.is_dir():
            raise UsageError(f"there is no folder {root}")
        parted = (root / "train").is_dir()
        own = {name: folder(root / name) for name in ("val", "test") if parted and (root / name).is_dir()}
        whole = folder(root / "train" if parted else root)
        for name, part in own.items():
            if part.classes != whole.classes:
                raise UsageError(f"{root / name} has other classes than {root / 'train'}")
        self.class_names = list(whole.classes)
        self.num_classes = len(self.class_names)
        self.image_size = image_size
        self.input_shape = (3, image_size, image_size)
        self.num_features = 3 * image_size * image_size
        fractions = {"val": val_fraction, "test": test_fraction}
        cut = [0.0 if name in own else fraction for name, fraction in fractions.items()]
        train, val, test = split(len(whole), cut, seed, labels=whole.targets)
        self.train = Subset(whole, train.tolist())
        self.val = own.get("val") or (Subset(whole, val.tolist()) if len(val) else None)
        self.test = own.get("test") or (Subset(whole, test.tolist()) if len(test) else None)
        resize = [v2.Resize(round(image_size * 8 / 7)), v2.CenterCrop(image_size)]
        crop = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()]
        self.eval_transform = OnInput(v2.Compose([*resize, v2.PILToTensor()]))
        self.train_transform = OnInput(v2.Compose([*crop, v2.PILToTensor()])) if augment else self.eval_transform
        self.batch_transform = NormalizeBytes(mean, std)


def torchvision(part: str) -> Any:
    """A module of torchvision, imported only when a run needs it."""
    try:
        import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise MissingExtraError("torchvision", "vision") from error
    return import_module(f"torchvision.{part}")

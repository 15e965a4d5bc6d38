"""Images to patches: the processors of the GLM-4V family for stills."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from PIL import Image

from processors.features import ImageFeatures, normalise, parse_device
from processors.inputs import flatten_images, to_rgb, warn_of_range
from processors.options import ImageOptions, TensorKind
from processors.patches import patchify
from processors.pretrained import build, find_processor, folder_reader, undescribed
from processors.resize import require_torch_resample, resize_pil, resize_torch
from processors.sampling import VideoFamily
from processors.sizes import target_size

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Resize(Protocol):
    def __call__(
        self, image: NDArray[Any], *, height: int, width: int, resample: Image.Resampling
    ) -> NDArray[Any]: ...


class _ImageProcessor:
    """All but the resizing."""

    _family: ClassVar[VideoFamily] = "glmga"
    _resize: ClassVar[_Resize]
    _default_tensors: ClassVar[TensorKind]

    def __init__(self, **options: Any) -> None:
        self.options = self._checked(ImageOptions().updated(options))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Makes the processor that a checkpoint's files describe.

        They are ``processor_config.json`` or else ``preprocessor_config.json``. Their type must be
        this class's, with or without ``Fast`` or ``Pil``. What has no effect in transformers' class
        is passed over, but ``min_pixels`` and ``max_pixels`` count where there is no ``size``.

        Args:
            folder: On this machine.
            **overrides: Options over the files', by the names in ``ImageOptions``.

        Raises:
            ValueError: If the folder or the files are not there, or are another processor's, or on
                what ``ImageOptions`` refuse, unknown names included; one line, which names the
                file where it is to blame.
        """
        found = find_processor("image", folder, folder_reader(folder))
        if found is None:
            raise ValueError(undescribed("image", folder))
        return build(cls, cls._family, found, overrides)

    def __call__(
        self, images: object, *, return_tensors: TensorKind | None = None, **overrides: Any
    ) -> ImageFeatures:
        """Same as ``preprocess``."""
        return self._preprocess(images, overrides | {"return_tensors": return_tensors})

    def preprocess(
        self, images: object, *, return_tensors: TensorKind | None = None, **overrides: Any
    ) -> ImageFeatures:
        """Resizes, normalises and cuts images.

        Integer levels count as 0..255 and must hold those; booleans and uint16 are scaled by the
        range of their type. Floating point counts as 0..255 unless ``do_rescale`` is False.

        Args:
            images: A PIL image, numpy array or torch tensor (channels first or last), a list of
                them, or an array with a batch axis. PIL images are not turned by their EXIF.
            return_tensors: ``"pt"`` or ``"np"``.
            **overrides: Options for this call, by the names in ``ImageOptions``.

        Returns:
            The reference's ``pixel_values``, to float rounding, and ``image_grid_thw``.

        Raises:
            ValueError: On what is no image or could be read in two ways, other levels, NaN, and
                what ``ImageOptions`` refuses.
            AspectRatioError: If a side is over 200 times the other.
        """
        return self._preprocess(images, overrides | {"return_tensors": return_tensors})

    def patches(
        self, image: NDArray[np.uint8], *, size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
        """Cuts one decoded image into 8-bit patches, its temporal slice once.

        What ``preprocess`` does short of normalising, at an eighth of the bytes.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            size: Height and width that it had before it was reduced; the grid goes by them.

        Returns:
            uint8 levels ``[h * w, 3 * patch_size**2]``, columns over channel, row and column of a
            patch, and the grid ``(1, h, w)``.

        Raises:
            ValueError: If the array is another, or a side is zero or, without resizing, does not
                divide.
            AspectRatioError: If a side is over 200 times the other.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return self._cut(image, self.options, size)

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Counts the patches that ``preprocess`` makes of an image.

        Args:
            height: Pixels, before resizing.
            width: Likewise.
            images_kwargs: The overrides that ``preprocess`` would get. All of them count, where
                the reference forgets ``patch_expand_factor`` and ``temporal_patch_size``.

        Returns:
            Patches before merging, ``h * w``.

        Raises:
            ValueError: Where ``preprocess`` would refuse the size or an option.
        """
        options = self._checked(self.options.updated(images_kwargs or {}))
        new_height, new_width = target_size(options.temporal_patch_size, height, width, options)
        return (new_height // options.patch_size) * (new_width // options.patch_size)

    @classmethod
    def _checked(cls, options: ImageOptions) -> ImageOptions:
        """Refuses what this class cannot do."""
        raise NotImplementedError  # Each class has its own.

    def _preprocess(self, images: object, overrides: Mapping[str, Any]) -> ImageFeatures:
        """Does it for both public doors, at one distance from whom a warning is for."""
        options = self._checked(self.options.updated(overrides))
        arrays = [to_rgb(image, options) for image in flatten_images(images)]
        warn_of_range(arrays, do_rescale=options.do_rescale)
        cut = [self._cut(array, options) for array in arrays]
        pixel_values = torch.cat([normalise(patches, options) for patches, _ in cut])
        image_grid_thw = torch.tensor([grid for _, grid in cut], device=pixel_values.device)
        if (options.return_tensors or self._default_tensors) == "np":
            return ImageFeatures(pixel_values.cpu().numpy(), image_grid_thw.cpu().numpy())
        return ImageFeatures(pixel_values, image_grid_thw)

    def _cut(
        self, image: NDArray[Any], options: ImageOptions, size: tuple[int, int] | None = None
    ) -> tuple[NDArray[Any], tuple[int, int, int]]:
        of_height, of_width = size or image.shape[:2]
        height, width = target_size(options.temporal_patch_size, of_height, of_width, options)
        if image.shape[:2] != (height, width):
            image = self._resize(image, height=height, width=width, resample=options.resample)
        return patchify(
            image[None],
            patch_size=options.patch_size,
            temporal_patch_size=1,
            merge_size=options.merge_size,
        )


class GlmgaImageProcessor(_ImageProcessor):
    """Image processor whose levels are those of transformers' class of the same name, bit for bit.

    That is torchvision's, on the CPU: ``models/glmga/image_processing_glmga.py``.

    Args:
        **options: See ``ImageOptions``, and ``size`` as the reference has it. Unknown names are
            refused.

    Attributes:
        options: The options in force.
    """

    _resize = staticmethod(resize_torch)
    _default_tensors = "pt"

    @classmethod
    def _checked(cls, options: ImageOptions) -> ImageOptions:
        require_torch_resample(options.resample, otherwise="use GlmgaImageProcessorPil")
        parse_device(options.device)
        return options


class Glm46VImageProcessor(GlmgaImageProcessor):
    """GLM-4.6V's image processor, ``models/glm46v/image_processing_glm46v.py`` in transformers.

    Does all that ``GlmgaImageProcessor`` does. Of ``patch_expand_factor``, which its namesake does
    not know, the default changes nothing.
    """

    _family = "glm46v"


class Glm4vImageProcessor(GlmgaImageProcessor):
    """GLM-4.1V's image processor, ``models/glm4v/image_processing_glm4v.py`` in transformers.

    Does all that ``GlmgaImageProcessor`` does. Of ``patch_expand_factor``, which its namesake does
    not know, the default changes nothing.
    """

    _family = "glm4v"


class GlmgaImageProcessorPil(_ImageProcessor):
    """Image processor whose levels are those of transformers' Pillow-backed class of the same name.

    That is ``models/glmga/image_processing_pil_glmga.py`` with Pillow 13, whose resizing gives
    other levels than Pillow 12 for some sizes. Unlike the reference it honours
    ``patch_expand_factor``.

    Args:
        **options: See ``ImageOptions``, and ``size`` as the reference has it. Unknown names are
            refused.

    Attributes:
        options: The options in force.
    """

    _resize = staticmethod(resize_pil)
    _default_tensors = "np"

    @classmethod
    def _checked(cls, options: ImageOptions) -> ImageOptions:
        device = parse_device(options.device)
        if device is not None and device.type != "cpu":
            raise ValueError(
                f"device={str(options.device)!r} needs torch's class, GlmgaImageProcessor; "
                "the Pillow class works on the CPU"
            )
        return options

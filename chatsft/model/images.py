"""Images by name: a path or a data URL."""

import os

from transformers.image_utils import load_image
from transformers.utils import is_vision_available

from .conversation import ConversationError


def read_image(url: str):
    """Read an image as RGB, a PIL image, decoded to the end so that damage shows.

    Raises:
        ConversationError: where there is no such file, or no image in it.
    """
    if not is_vision_available():
        raise ValueError("images need pillow, which is not installed: pip install 'chatsft[vision]'.")
    is_data = url.startswith("data:")
    if not is_data and not os.path.isfile(url):
        raise ConversationError(f"there is no image {url}. Correct the path, which counts from the folder of the file that names it.")
    try:
        return load_image(url)
    except Exception as error:  # a damaged image raises nearly anything
        name = "the image in a data URL" if is_data else f"the image {url}"
        problem = "a data URL that holds no image" if is_data else " ".join(str(error).split())
        raise ConversationError(f"{name} cannot be read ({problem}). Replace or remove it.") from error


__all__ = ["read_image"]

"""Images by name: a path or a data URL."""

import base64
from pathlib import Path

from transformers.image_utils import load_image
from transformers.utils import is_vision_available

from .conversation import ConversationError


def read_image(url: str):
    """Read an image as RGB, a PIL image, decoded to its end so that damage shows.

    Raises:
        ConversationError: where there is no such file, or no image in it.
    """
    if not is_vision_available():
        raise ValueError("images need pillow, which is not installed: pip install 'chatsft[vision]'.")
    is_data = url.startswith("data:")
    if not is_data and not Path(url).is_file():
        raise ConversationError(f"there is no image {url}. Correct the path, which counts from the folder of the file that names it.")
    try:
        return load_image(url if is_data else f"data:image/any;base64,{base64.b64encode(Path(url).read_bytes()).decode()}")
    except Exception as error:  # a damaged image raises nearly anything
        name = "in a data URL" if is_data else url
        raise ConversationError(f"the image {name} cannot be read: it is damaged or no image. Replace or remove it.") from error


__all__ = ["read_image"]

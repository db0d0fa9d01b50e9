"""Draws the kept visual tokens on the camera image that they come from.

Images are [H, W, 3] uint8 RGB. The token grid covers the rectangle `crop` = (x, y, width, height)
of the image, in fractions of its width and height, after `transform` was applied to the image.
Preprocessing resizes without keeping the aspect ratio, so fractions survive it and the way back
to camera pixels needs no knowledge of the model's input size. Pure functions, any thread.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Crop = tuple[float, float, float, float]

# transform -> (columns reversed, rows reversed)
_FLIPS = {
    'none': (False, False),
    'rotate_180': (True, True),
    'mirror_horizontal': (True, False),
}
_MIN_SIDE_PX = 480
_KEPT = (64, 232, 190)
_FRAME = (168, 176, 190)
_PAPER = (20, 23, 29)
_TEXT = (240, 242, 245)
_MUTED_TEXT = (158, 167, 180)
_TRACK = (52, 58, 68)


def token_boxes(
    grid: tuple[int, int], crop: Crop, transform: str, image_shape: Sequence[int]
) -> np.ndarray:
    """Return the camera pixels each token covers: [rows, columns, 4] float64 x0, y0, x1, y1.

    Pixel i spans [i, i + 1). `image_shape` is the camera image's (H, W, ...).
    """
    x, y, width, height = crop
    reversed_x, reversed_y = _flips(transform)
    rows, columns = grid
    x_px = image_shape[1] * (x + width * np.linspace(0, 1, columns + 1))
    y_px = image_shape[0] * (y + height * np.linspace(0, 1, rows + 1))
    if reversed_x:
        x_px = image_shape[1] - x_px
    if reversed_y:
        y_px = image_shape[0] - y_px

    boxes = np.empty((rows, columns, 4))
    boxes[..., 0] = np.minimum(x_px[:-1], x_px[1:])
    boxes[..., 1] = np.minimum(y_px[:-1], y_px[1:])[:, None]
    boxes[..., 2] = np.maximum(x_px[:-1], x_px[1:])
    boxes[..., 3] = np.maximum(y_px[:-1], y_px[1:])[:, None]
    return boxes


def highlight(
    image: np.ndarray,
    kept: np.ndarray,
    crop: Crop,
    transform: str,
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Return the image with kept tokens clear and outlined, the rest dimmed, same size.

    kept: [rows, columns] bool. scores: same shape, not negative: a dot in each kept token, its
    area the share of the highest score; None or empty for no dots. What the crop cut away is
    grey, darker still, and framed off.
    """
    x_token, y_token = _tokens_of_pixels(kept.shape, crop, transform, image.shape)
    inside = np.outer(y_token >= 0, x_token >= 0).astype(np.uint8)
    clear = token_mask(image.shape, kept, crop, transform)

    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dropped = cv2.addWeighted(image, 0.25, grey, 0.10, 0)
    out = cv2.convertScaleAbs(grey, alpha=0.12, beta=14)
    cv2.copyTo(dropped, inside, out)
    cv2.copyTo(image, clear, out)
    _outline(out, inside, _FRAME, 1)
    _outline(out, clear, _KEPT, max(1, round(min(image.shape[:2]) / 300)))
    if scores is not None and scores.size and scores.max() > 0:
        boxes = token_boxes(kept.shape, crop, transform, image.shape)
        _draw_scores(out, boxes[kept], scores[kept] / scores.max())
    return out


def token_mask(
    image_shape: Sequence[int], kept: np.ndarray, crop: Crop, transform: str
) -> np.ndarray:
    """Return which camera pixels belong to kept tokens: [H, W] uint8, 1 or 0.

    kept: [rows, columns] bool. `image_shape` is the camera image's (H, W, ...).
    """
    x_token, y_token = _tokens_of_pixels(kept.shape, crop, transform, image_shape)
    inside = np.outer(y_token >= 0, x_token >= 0).astype(np.uint8)
    return kept.astype(np.uint8)[y_token][:, x_token] * inside


def draw_overlay(
    image: np.ndarray,
    kept: np.ndarray,
    crop: Crop,
    transform: str,
    lines: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Return `highlight` of the image over a bar with the share of kept tokens and a caption.

    The caption ends with a legend. All of it is under the image, never on it.
    """
    image = enlarged(image)
    picture = highlight(image, kept, crop, transform, scores)
    width = image.shape[1]
    has_dots = scores is not None and scores.size > 0 and scores.max() > 0
    return np.vstack([picture, _share_bar(width, float(kept.mean())), _caption(width, lines),
                      _legend(width, has_dots)])


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return a small image enlarged by a whole factor, so that outlines and text are readable."""
    factor = -(-_MIN_SIDE_PX // min(image.shape[:2]))
    if factor == 1:
        return image
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def caption(
    camera: str, method: str, kept: np.ndarray, inference_ms: float, instruction: str = ''
) -> list[str]:
    """Return the two lines that go with an overlay: what was kept, then how and for what."""
    count, total = int(kept.sum()), kept.size
    quoted = f'   "{instruction}"' if instruction else ''
    return [
        f'{camera}   {count} of {total} tokens ({100 * count / total:.0f} %)',
        f'{method}   {inference_ms:.0f} ms{quoted}',
    ]


def put_text(
    canvas: np.ndarray, text: str, left: int, baseline: int, height_px: int, colour, width_px: int
) -> None:
    """Write one line of text into the canvas, shrunk to `width_px` if it is longer."""
    text = text.encode('ascii', 'replace').decode()  # all that OpenCV's fonts promise
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    scale = cv2.getFontScaleFromHeight(font, height_px, thickness)
    needed_px = cv2.getTextSize(text, font, scale, thickness)[0][0]
    scale *= min(1, width_px / max(needed_px, 1))
    cv2.putText(canvas, text, (left, baseline), font, scale, colour, thickness, cv2.LINE_AA)


def _flips(transform: str) -> tuple[bool, bool]:
    if transform not in _FLIPS:
        known = ', '.join(_FLIPS)
        raise ValueError(f"Camera transform '{transform}' is unknown; use one of {known}.")
    return _FLIPS[transform]


def _tokens_of_pixels(grid, crop: Crop, transform: str, image_shape):
    """Return the token column of each pixel column and the token row of each row, -1 outside."""
    x, y, width, height = crop
    if width <= 0 or height <= 0:
        raise ValueError(f'The crop must have a positive width and height, got {tuple(crop)}.')
    reversed_x, reversed_y = _flips(transform)

    def along(start, length, tokens, pixels, is_reversed):
        centre = (np.arange(pixels) + 0.5) / pixels
        index = np.floor(((1 - centre if is_reversed else centre) - start) / length * tokens)
        return np.where((index >= 0) & (index < tokens), index, -1).astype(int)

    return (
        along(x, width, grid[1], image_shape[1], reversed_x),
        along(y, height, grid[0], image_shape[0], reversed_y),
    )


def _outline(canvas: np.ndarray, mask: np.ndarray, colour, line_px: int) -> None:
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, colour, line_px)


def _draw_scores(canvas: np.ndarray, boxes: np.ndarray, shares: np.ndarray) -> None:
    """Draw a dot in the middle of each box, its area in proportion to the share in [0, 1]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    largest_px = 0.2 * (boxes[:, 2:] - boxes[:, :2]).min()
    sub = 16  # OpenCV takes fractions of a pixel as fixed point numbers
    for (x, y), radius in zip(centres - 0.5, largest_px * np.sqrt(shares), strict=True):
        centre = (round(x * sub), round(y * sub))
        cv2.circle(canvas, centre, round(radius * sub), _KEPT, cv2.FILLED, cv2.LINE_AA, shift=4)


def _share_bar(width: int, share: float) -> np.ndarray:
    bar = np.full((max(4, width // 110), width, 3), _TRACK, np.uint8)
    bar[:, : round(width * share)] = _KEPT
    return bar


def _text_px(width: int) -> int:
    """Height of capital letters under an image of this width."""
    return max(11, round(width / 42))


def _caption(width: int, lines: Sequence[str]) -> np.ndarray:
    text_px = _text_px(width)
    pitch = round(text_px * 1.9)
    canvas = np.full((pitch * len(lines) + text_px, width, 3), _PAPER, np.uint8)
    for index, line in enumerate(lines):
        colour = _TEXT if index == 0 else _MUTED_TEXT
        put_text(canvas, line, text_px, pitch * (index + 1), text_px, colour, width - 2 * text_px)
    return canvas


def _legend(width: int, has_dots: bool) -> np.ndarray:
    """Return the line that says what squares, dots and the bar mean."""
    text_px = _text_px(width)
    entries = [('clear', 'kept'), ('dimmed', 'dropped')]
    entries += [('dot', 'size: score')] if has_dots else []
    entries += [('bar', 'share kept')]
    canvas = np.full((round(text_px * 2.6), width, 3), _PAPER, np.uint8)
    top, side, margin = round(text_px * 0.5), round(text_px * 1.4), text_px
    room = (width - 2 * margin) // len(entries)
    for place, (sign, text) in enumerate(entries):
        left = margin + place * room
        _draw_sign(canvas[top:top + side, left:left + side], sign)
        put_text(canvas, text, left + side + text_px // 2, top + round(text_px * 1.15), text_px,
                 _MUTED_TEXT, room - side - text_px)
    return canvas


def _draw_sign(box: np.ndarray, sign: str) -> None:
    """Draw into a square what a word of the legend stands for, as it looks on a picture."""
    side = box.shape[0]
    if sign == 'bar':
        box[side // 3:-(side // 3)] = _TRACK
        box[side // 3:-(side // 3), :side // 2] = _KEPT
        return
    box[:] = (90, 94, 102) if sign == 'dimmed' else (205, 208, 212)
    if sign == 'dot':
        box[:] = (60, 64, 72)
        centre = (side // 2, side // 2)
        cv2.circle(box, centre, max(2, side // 4), _KEPT, cv2.FILLED, cv2.LINE_AA)
    if sign != 'dimmed':
        cv2.rectangle(box, (0, 0), (side - 1, side - 1), _KEPT, max(1, side // 10))

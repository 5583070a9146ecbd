"""The picture of a restoration: raw, restored and ground truth side by side, and a magnified detail below each.

Drawn with Pillow alone, so that the lean runtime can make it. One linear grey scale serves all panels: a stretch of
each by itself would make any restoration look good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

INK, QUIET_INK, ACCENT = (17, 17, 17), (110, 110, 110), (255, 176, 0)
MARGIN, GAP, HEADING, FOOTER_LINE = 44, 14, 78, 27
PANEL_WIDTH_PX = 512
DETAIL_MAGNIFICATION = 4
BAR_LENGTHS_UM = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One column of the picture.

    Parameters
    ----------
    image : (H, W) array; all panels of a picture share shape and unit
    title : what it is: "Raw"
    numbers : what was measured on it: "PSNR 22.2 dB   SSIM 0.42"; may be empty
    """

    image: npt.NDArray[np.generic]
    title: str
    numbers: str = ""


def draw_comparison(
    panels: Sequence[Panel],
    *,
    reference: npt.NDArray[np.generic],
    pixel_size_um: float | None = None,
    footer: Sequence[str] = (),
) -> Image.Image:
    """Return the picture of a restoration.

    Parameters
    ----------
    panels : columns from left to right
    reference : (H, W), sets the grey scale (its 0.5 to 99.8 percentiles) and the place of the detail
    pixel_size_um : for the scale bar; None draws it in pixels
    footer : lines of small print below

    Returns
    -------
    RGB image; panels are 512 px wide
    """
    height, width = reference.shape
    scale = PANEL_WIDTH_PX / width
    panel_height = round(height * scale)
    side = max(16, round(width / DETAIL_MAGNIFICATION))
    detail = richest_region(reference, (max(8, side * 5 // 8), side))
    detail_height = round(PANEL_WIDTH_PX * (detail[0].stop - detail[0].start) / side)
    black, white = np.percentile(reference, (0.5, 99.8))

    total_width = 2 * MARGIN + len(panels) * PANEL_WIDTH_PX + (len(panels) - 1) * GAP
    total_height = MARGIN + HEADING + panel_height + GAP + detail_height + 22 + len(footer) * FOOTER_LINE + MARGIN - 12
    canvas = Image.new("RGB", (total_width, total_height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, panel in enumerate(panels):
        left = MARGIN + column * (PANEL_WIDTH_PX + GAP)
        top = MARGIN + HEADING
        _draw_heading(draw, (left, MARGIN), "abcdefgh"[column], panel)
        canvas.paste(_grey(panel.image, black, white, (PANEL_WIDTH_PX, panel_height)), (left, top))
        _draw_frame_of_detail(draw, detail, scale, (left, top))
        below = top + panel_height + GAP
        canvas.paste(_grey(panel.image[detail], black, white, (PANEL_WIDTH_PX, detail_height)), (left, below))
        if column == 0:
            _draw_scale_bar(draw, scale, pixel_size_um, (left + 20, top + panel_height - 20))
            _draw_scale_bar(draw, PANEL_WIDTH_PX / side, pixel_size_um, (left + 20, below + detail_height - 20))
    bottom = MARGIN + HEADING + panel_height + GAP + detail_height + 22
    for line, text in enumerate(footer):
        draw.text((MARGIN, bottom + line * FOOTER_LINE), text, fill=QUIET_INK, font=_font(18))
    return canvas


def richest_region(image: npt.NDArray[np.generic], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return where a window of ``shape`` holds the most gradient energy: the detail worth looking at."""
    pixels = np.asarray(image, dtype=np.float64)
    gradient_y, gradient_x = np.gradient(pixels)
    # The root tempers single bright spots, which would otherwise outweigh a whole tissue.
    energy = np.pad(np.sqrt(np.hypot(gradient_y, gradient_x)), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    height, width = (min(n, m) for n, m in zip(shape, pixels.shape, strict=True))
    sums = energy[height:, width:] - energy[:-height, width:] - energy[height:, :-width] + energy[:-height, :-width]
    y, x = np.unravel_index(np.argmax(sums), sums.shape)
    return slice(int(y), int(y) + height), slice(int(x), int(x) + width)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _grey(image: npt.NDArray[np.generic], black: float, white: float, size: tuple[int, int]) -> Image.Image:
    shown = np.clip((np.asarray(image, dtype=np.float64) - black) / (white - black), 0, 1)
    # Nearest: enlarged pixels stay pixels, nothing is smoothed into looking better.
    return Image.fromarray((shown * 255).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def _draw_heading(draw: ImageDraw.ImageDraw, corner: tuple[int, int], letter: str, panel: Panel) -> None:
    x, y = corner
    draw.text((x, y), letter, fill=INK, font=_font(30), stroke_width=0.7, stroke_fill=INK)
    draw.text((x + 34, y), panel.title, fill=INK, font=_font(30))
    draw.text((x + 34, y + 40), panel.numbers, fill=QUIET_INK, font=_font(21))


def _draw_frame_of_detail(
    draw: ImageDraw.ImageDraw, detail: tuple[slice, slice], scale: float, corner: tuple[int, int]
) -> None:
    rows, columns = detail
    left, right = (corner[0] + round(edge * scale) for edge in (columns.start, columns.stop))
    top, bottom = (corner[1] + round(edge * scale) for edge in (rows.start, rows.stop))
    draw.rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=2)


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, scale: float, pixel_size_um: float | None, corner: tuple[int, int]
) -> None:
    """Draw a bar of a round length near a fifth of the panel's width, its left end at ``corner``."""
    aim = PANEL_WIDTH_PX / 5 / scale
    if pixel_size_um is None:
        length_px = min((5, 10, 20, 25, 50, 100, 200, 500), key=lambda n: abs(n - aim))
        label = f"{length_px} px"
    else:
        length_um = min(BAR_LENGTHS_UM, key=lambda n: abs(n - aim * pixel_size_um))
        length_px, label = length_um / pixel_size_um, f"{length_um:g} um"  # Pillow's built-in font has no micro sign
    x, y = corner
    right = x + round(length_px * scale)
    draw.rectangle((x - 2, y - 7, right + 2, y + 2), fill="black")
    draw.rectangle((x, y - 5, right, y), fill="white")
    middle = ((x + right) // 2, y - 14)
    draw.text(middle, label, fill="white", font=_font(21), anchor="ms", stroke_width=3, stroke_fill="black")

"""The GPU and link matrix as a small PNG for the thread: one row per GPU, one cell per link, faults in red and with a sign.

Pillow draws it in 30 ms; matplotlib takes a second and 100 MB, and the verdict must not wait for its picture. The colours are
safe for colour-blind readers (Okabe and Ito), and every state has a sign as well.
"""

from bisect import bisect_right
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gpu_actions.models import Severity
from gpu_actions.triage.matrix import LinkMatrix, LinkState, MatrixGpu

CELL = 26
ROW = 40
LEFT = 150
TOP = 64
MARGIN = 16
WORDS = 380
INK = "#1d1c1d"
PALE = "#616061"
FILLS: dict[LinkState, str] = {
    "up": "#009e73",
    "down": "#d55e00",
    "errors": "#e69f00",
    "unread": "#bdbdbd",
    "absent": "#ffffff",
}
SIGNS: dict[LinkState, str] = {"up": "", "down": "x", "errors": "!", "unread": "?", "absent": "-"}
LEGEND: tuple[tuple[LinkState, str], ...] = (
    ("up", "up"),
    ("down", "down"),
    ("errors", "new errors"),
    ("unread", "not read"),
    ("absent", "not reported"),
)
DOTS = {
    Severity.OK: "#009e73",
    Severity.INFO: "#56b4e9",
    Severity.WATCH: "#e69f00",
    Severity.UNKNOWN: "#bdbdbd",
    Severity.CRITICAL: "#d55e00",
}


def draw_matrix(matrix: LinkMatrix, path: Path, *, title: str) -> bool:
    """Write the picture. Return False, and write nothing, if there is no GPU to show."""
    if not matrix.gpus and not matrix.missing_gpus:
        return False
    links = max((len(gpu.links) for gpu in matrix.gpus), default=0)
    rows = len(matrix.gpus) + bool(matrix.missing_gpus)
    notes = _notes(matrix)
    width = max(640, LEFT + links * CELL + WORDS + MARGIN)
    height = TOP + rows * ROW + 24 * (len(notes) + bool(links)) + MARGIN
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 12), _clip(pen, title, width - 2 * MARGIN, _font(18)), fill=INK, font=_font(18))
    if links:
        pen.text((MARGIN, 42), "link", fill=PALE, font=_font(12))
        for index in range(links):
            pen.text((LEFT + index * CELL + CELL / 2, 50), str(index), fill=PALE, font=_font(11), anchor="mm")
    for number, gpu in enumerate(matrix.gpus):
        _row(
            pen, gpu, TOP + number * ROW, width=width, links=links, chosen=gpu.index == matrix.fallback_index
        )
    y = TOP + len(matrix.gpus) * ROW
    if matrix.missing_gpus:
        pen.ellipse((MARGIN, y + 12, MARGIN + 14, y + 26), fill=DOTS[Severity.CRITICAL])
        text = f"{matrix.missing_gpus} GPU{'' if matrix.missing_gpus == 1 else 's'} missing"
        pen.text((MARGIN + 22, y + 10), text, fill=INK, font=_font(15))
        y += ROW
    for note in notes:
        pen.text(
            (MARGIN, y + 4),
            _clip(pen, note, width - 2 * MARGIN, _font(13)),
            fill=DOTS[Severity.CRITICAL],
            font=_font(13),
        )
        y += 24
    if links:
        _legend(pen, y + 4)
    image.save(path, optimize=True)
    return True


def _row(pen: ImageDraw.ImageDraw, gpu: MatrixGpu, y: int, *, width: int, links: int, chosen: bool) -> None:
    pen.ellipse((MARGIN, y + 12, MARGIN + 14, y + 26), fill=DOTS[gpu.severity])
    pen.text((MARGIN + 22, y + 2), f"GPU {gpu.index}", fill=INK, font=_font(15))
    under = " · ".join(
        part
        for part in (
            f"{gpu.temperature_c} °C" if gpu.temperature_c is not None else "",
            "FALL BACK HERE" if chosen else "",
        )
        if part
    )
    pen.text((MARGIN + 22, y + 21), under, fill=INK if chosen else PALE, font=_font(11))
    for link in gpu.links:
        x = LEFT + link.index * CELL
        box = (x + 2, y + 8, x + CELL - 2, y + ROW - 8)
        pen.rectangle(box, fill=FILLS[link.state], outline=PALE if link.state == "absent" else None)
        pen.text(
            (x + CELL / 2, y + ROW / 2), SIGNS[link.state], fill=_ink(link.state), font=_font(15), anchor="mm"
        )
    left = LEFT + links * CELL + 12
    words = gpu.words.removeprefix(f"GPU {gpu.index}: ") or gpu.name
    pen.text(
        (left, y + 12), _clip(pen, words, width - left - MARGIN, _font(13)), fill=INK if gpu.words else PALE,
        font=_font(13),
    )  # fmt: skip


def _legend(pen: ImageDraw.ImageDraw, y: int) -> None:
    x = MARGIN
    for state, words in LEGEND:
        pen.rectangle((x, y, x + 14, y + 14), fill=FILLS[state], outline=PALE if state == "absent" else None)
        pen.text((x + 7, y + 7), SIGNS[state], fill=_ink(state), font=_font(11), anchor="mm")
        pen.text((x + 20, y), words, fill=PALE, font=_font(12))
        x += 34 + int(pen.textlength(words, font=_font(12)))


def _notes(matrix: LinkMatrix) -> list[str]:
    notes = [f"missing links share a remote end: {end}" for end in matrix.bad_ends]
    if matrix.pairs_off:
        pairs = ", ".join(f"{first}-{second}" for first, second in matrix.pairs_off)
        notes.append(f"no NVLink between GPUs {pairs}")
    return notes


def _clip(
    pen: ImageDraw.ImageDraw, text: str, room: float, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont"
) -> str:
    """Return the text, shortened with three dots if it is wider than `room` pixels."""
    text = " ".join(text.split())
    if pen.textlength(text, font=font) <= room:
        return text
    first_over = bisect_right(
        range(len(text)), room, key=lambda length: pen.textlength(f"{text[:length]}...", font=font)
    )
    return text[: max(0, first_over - 1)].rstrip() + "..."


def _ink(state: LinkState) -> str:
    return PALE if state == "absent" else "white" if state in ("up", "down") else INK


def _font(size: float) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)

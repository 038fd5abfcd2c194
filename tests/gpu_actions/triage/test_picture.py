"""The picture of GPUs and links, checked pixel by pixel."""

from pathlib import Path

from PIL import Image, ImageColor

from gpu_actions.triage.judge import judge
from gpu_actions.triage.matrix import LinkMatrix, matrix_of
from gpu_actions.triage.picture import CELL, FILLS, LEFT, ROW, TOP, draw_matrix
from tests.gpu_actions.triage import builders as make


def colour_of_cell(image: Image.Image, gpu: int, link: int) -> object:
    return image.getpixel((LEFT + link * CELL + 4, TOP + gpu * ROW + 10))


def test_only_the_links_that_are_down_are_marked(tmp_path: Path) -> None:
    snapshot = make.healthy(nvml=make.links_down({0: (7,), 3: (3,)}))
    path = tmp_path / "matrix.png"
    assert draw_matrix(
        matrix_of(snapshot, judge(snapshot)), path, title="FALL BACK: nvlink_partial on serve1"
    )
    image = Image.open(path).convert("RGB")
    down = ImageColor.getrgb(FILLS["down"])
    marked = {
        (gpu, link) for gpu in range(8) for link in range(18) if colour_of_cell(image, gpu, link) == down
    }
    assert marked == {(0, 7), (3, 3)}
    assert path.stat().st_size < 100_000


def test_a_missing_gpu_still_has_a_row(tmp_path: Path) -> None:
    whole, less = make.healthy(), make.healthy(nvml=make.nvml(count=7))
    for name, snapshot in (("whole", whole), ("less", less)):
        assert draw_matrix(matrix_of(snapshot, judge(snapshot)), tmp_path / f"{name}.png", title=name)
    assert Image.open(tmp_path / "whole.png").height == Image.open(tmp_path / "less.png").height


def test_a_host_without_gpus_gets_no_picture(tmp_path: Path) -> None:
    assert not draw_matrix(LinkMatrix(host="cpu"), tmp_path / "matrix.png", title="HEALTHY: cpu")
    assert not (tmp_path / "matrix.png").exists()


def test_a_title_of_any_length_fits_the_picture(tmp_path: Path) -> None:
    matrix = matrix_of(make.healthy())
    for title in ("", "x" * 5000, "多卡 ☃\n\nline"):
        assert draw_matrix(matrix, tmp_path / "matrix.png", title=title)

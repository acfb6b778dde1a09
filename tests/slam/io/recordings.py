"""Little recordings for the tests of the sources."""

import pathlib

import cv2
import numpy as np
from PIL import Image

FPS = 20.0


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An RGB image whose flat colour tells its number: red and green bright, blue the number."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[..., 1], image[..., 2] = 120, 10 * number
    return image


def number_of(rgb: np.ndarray) -> int:
    """Reads ``picture``'s number back, also after lossy coding; fails on swapped channels."""
    red, green, blue = rgb.reshape(-1, 3).mean(axis=0)
    assert abs(red - 200) < 6 and abs(green - 120) < 6, (red, green, blue)
    return round(blue / 10)


def write_images(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


def write_video(path: pathlib.Path, count: int = 12, codec: str = "MJPG") -> pathlib.Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), FPS, (64, 48))
    assert writer.isOpened(), f"this OpenCV cannot write {codec}"
    for number in range(count):
        writer.write(cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_tum(folder: pathlib.Path, count: int = 6) -> pathlib.Path:
    """Images at 10 Hz, depth 8 ms later, poses at 100 Hz: position (t, 2t, 3t), turning about z."""
    write_images(folder / "rgb", [f"{i:04d}.png" for i in range(count)])
    (folder / "depth").mkdir()
    rgb, depth = ["# timestamp filename"], ["# timestamp filename"]
    for i in range(count):
        raw = np.full((48, 64), 1000 * (i + 1), np.uint16)
        raw[:8] = 0
        Image.fromarray(raw).save(folder / "depth" / f"{i:04d}.png")
        rgb.append(f"{1000 + 0.1 * i:.6f} rgb/{i:04d}.png")
        depth.append(f"{1000 + 0.1 * i + 0.008:.6f} depth/{i:04d}.png")
    poses = ["# timestamp tx ty tz qx qy qz qw"]
    for k in range(10 * count):
        t = 0.01 * k
        half = 0.5 * t
        poses.append(
            f"{1000 + t + 0.002:.4f} {t} {2 * t} {3 * t} 0 0 {np.sin(half):.6f} {np.cos(half):.6f}"
        )
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", poses)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "calibration.txt").write_text("# fx fy cx cy\n60 61 32.5 24.5\n")
    return folder


def edit_line(path: pathlib.Path, line: int, text: str) -> None:
    """Replace a line (from 1) of a text file."""
    lines = path.read_text().split("\n")
    lines[line - 1] = text
    path.write_text("\n".join(lines))

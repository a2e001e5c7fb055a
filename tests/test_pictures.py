"""One reader of pictures: each kind as a viewer on white shows it, or refused by name."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import sayso.base.pictures
from sayso.base.errors import UserError
from sayso.base.pictures import UnreadablePicture, picture_size, read_picture, to_rgb
from sayso.base.types import Sample, Sampler, Size
from sayso.data.clip import to_pixels
from sayso.data.pretraining_images._decoding import decoded
from sayso.formats.imports import decode
from sayso.study.info import StudyInfo
from sayso.study.study import Study

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, 32 × 16."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image.convert(mode)


def turned(orientation: int, form: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(halves(), form, exif=exif, **options)


def clear(mode: str) -> Image.Image:
    """A red square on nothing; what does not show is green."""
    image = Image.new("RGBA", (32, 16), (0, 255, 0, 0))
    image.paste((*RED, 255), (0, 0, 16, 16))
    return image.convert(mode)


def palette_with_hole() -> bytes:
    image = Image.new("P", (32, 16), 1)
    image.putpalette([0, 255, 0, *RED, *BLUE])
    image.paste(0, (16, 0, 32, 16))
    return saved(image, "GIF", transparency=0)


def ramp16(form: str) -> bytes:
    return saved(
        Image.fromarray(np.tile(np.linspace(0, 65535, 32, dtype=np.uint16), (16, 1))), form
    )


def swapped_profile() -> bytes:
    """sRGB's profile with the primaries of red and blue exchanged, and a name of its own."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for encoding in ("ascii", "utf-16-be"):
        profile = profile.replace("sRGB".encode(encoding), "odd!".encode(encoding))
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    entries = profile[red + 4 : red + 12], profile[blue + 4 : blue + 12]
    changed = bytearray(profile)
    changed[red + 4 : red + 12], changed[blue + 4 : blue + 12] = entries[1], entries[0]
    return bytes(changed)


LEFT_RIGHT = {"left": RED, "right": BLUE}
ON_WHITE = {"left": RED, "right": WHITE}
SHOWN: dict[str, tuple[Callable[[], bytes], dict[str, tuple[int, ...]]]] = {
    "RGB": (lambda: saved(halves()), LEFT_RIGHT),
    "palette": (lambda: saved(halves("P")), LEFT_RIGHT),
    "BMP": (lambda: saved(halves(), "BMP"), LEFT_RIGHT),
    "TIFF": (lambda: saved(halves(), "TIFF"), LEFT_RIGHT),
    "WebP": (lambda: saved(halves(), "WEBP", lossless=True), LEFT_RIGHT),
    "CMYK JPEG": (lambda: saved(halves("CMYK"), "JPEG", quality=100), LEFT_RIGHT),
    "CMYK TIFF": (lambda: saved(halves("CMYK"), "TIFF"), LEFT_RIGHT),
    "a profile of other primaries": (
        lambda: saved(halves(), icc_profile=swapped_profile()), {"left": BLUE, "right": RED},
    ),
    "two views of a camera": (lambda: frames("MPO", quality=95), LEFT_RIGHT),
    "a broken profile": (lambda: saved(halves(), icc_profile=b"broken"), LEFT_RIGHT),
    "one bit": (lambda: saved(Image.new("1", (32, 16), 1)), {"left": WHITE, "right": WHITE}),
    "grey": (lambda: saved(Image.new("L", (32, 16), 9)), {"left": (9, 9, 9), "right": (9, 9, 9)}),
    "RGBA": (lambda: saved(clear("RGBA")), ON_WHITE),
    "RGBA in WebP": (lambda: saved(clear("RGBA"), "WEBP", lossless=True), ON_WHITE),
    "LA": (lambda: saved(clear("LA")), {"left": (76, 76, 76), "right": WHITE}),
    "a hole in a palette": (palette_with_hole, ON_WHITE),
    "a colour that is transparent": (lambda: saved(halves(), transparency=BLUE), ON_WHITE),
    "16-bit PNG": (lambda: ramp16("PNG"), {"left": (66, 66, 66), "right": (197, 197, 197)}),
    "16-bit TIFF": (lambda: ramp16("TIFF"), {"left": (66, 66, 66), "right": (197, 197, 197)}),
    "turned by half": (lambda: turned(3, "JPEG", quality=95), {"left": BLUE, "right": RED}),
    "mirrored": (lambda: turned(2, "JPEG", quality=95), {"left": BLUE, "right": RED}),
    "upright": (lambda: turned(1, "JPEG", quality=95), LEFT_RIGHT),
    "turned PNG": (lambda: turned(3, "PNG"), {"left": BLUE, "right": RED}),
    "turned WebP": (lambda: turned(3, "WEBP", lossless=True), {"left": BLUE, "right": RED}),
    "turned TIFF": (lambda: turned(3, "TIFF"), {"left": BLUE, "right": RED}),
}  # fmt: skip


def frames(form: str, **more: object) -> bytes:
    other = Image.new("RGB", (32, 16), BLUE)
    return saved(halves(), form, save_all=True, append_images=[other], **more)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "float": (lambda: saved(Image.new("F", (8, 8), 0.5), "TIFF"), "mode F"),
    "32 bits": (lambda: saved(Image.new("I", (8, 8), 5), "TIFF"), "mode I"),
    "Lab": (lambda: saved(Image.new("LAB", (8, 8)), "TIFF"), "mode LAB"),
    "GIF that moves": (lambda: frames("GIF"), "2 frames"),
    "PNG that moves": (lambda: frames("PNG"), "2 frames"),
    "WebP that moves": (lambda: frames("WEBP"), "2 frames"),
    "pages": (lambda: frames("TIFF"), "2 frames"),
    "cut off PNG": (lambda: saved(halves())[:-40], "."),
    "a checksum that is wrong": (
        lambda: saved(halves())[:-16] + b"abcd" + saved(halves())[-12:],
        ".",
    ),
    "cut off JPEG": (lambda: saved(Image.effect_noise((64, 64), 90), "JPEG")[:-500], "truncated"),
    "no picture": (lambda: b"<html>404</html>", "not an image"),
    "empty": (lambda: b"", "not an image"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "not an image"),
    "huge": (lambda: saved(Image.new("1", (20_000, 10_000))), "more than 178 million pixels"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_kind_is_shown_as_it_looks(name: str):
    make, looks = SHOWN[name]
    image = read_picture(make())
    assert (image.mode, image.size) == ("RGB", (32, 16))
    for side, x in (("left", 8), ("right", 24)):
        assert np.allclose(image.getpixel((x, 8)), looks[side], atol=3), side


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(orientation: int):
    """Against a picture turned by hand: what stood above stands where EXIF says."""
    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    t = Image.Transpose
    by_hand = {2: t.FLIP_LEFT_RIGHT, 3: t.ROTATE_180, 4: t.FLIP_TOP_BOTTOM, 5: t.TRANSPOSE,
               6: t.ROTATE_270, 7: t.TRANSVERSE, 8: t.ROTATE_90}  # fmt: skip
    wanted = plain.transpose(by_hand[orientation]) if orientation > 1 else plain
    exif = Image.Exif()
    exif[0x112] = orientation
    found = read_picture(saved(plain, exif=exif))
    assert (found.size, found.tobytes()) == (wanted.size, wanted.tobytes())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_by_name(name: str, tmp_path: Path):
    make, says = REFUSED[name]
    content = make()
    with pytest.raises(UnreadablePicture, match=says):
        read_picture(content)
    with pytest.raises(UserError, match=f"row 3 has an image that cannot be read: .*{says}"):
        decode("row 3", content)
    file = tmp_path / "natural.png"
    file.write_bytes(content)
    (found,) = decoded([file], [Size(16, 16)], 0)
    assert isinstance(found, str)
    assert re.search(f"cannot be read: .*{says}", found)
    study = Study.create(tmp_path / "study", StudyInfo("s"))
    (study.path / "a.png").write_bytes(content)
    sample = Sample("a", "p", "base", 0, Sampler(), "a.png", "")
    with pytest.raises(UserError, match=f"a.png is damaged .*{says}"):
        study.image(sample)


@pytest.mark.parametrize("name", ["RGBA", "turned TIFF", "16-bit PNG"])
def test_every_way_in_reads_the_same(name: str, tmp_path: Path):
    content = SHOWN[name][0]()
    wanted = read_picture(content).tobytes()
    file = tmp_path / "a.png"
    file.write_bytes(content)
    study = Study.create(tmp_path / "study", StudyInfo("s"))
    (study.path / "a.png").write_bytes(content)
    sample = Sample("a", "p", "base", 0, Sampler(), "a.png", "")
    assert decode("row 1", content).tobytes() == wanted
    assert study.image(sample).tobytes() == wanted
    (square,) = decoded([file], [Size(16, 16)], 0)
    assert isinstance(square, Image.Image)
    assert np.allclose(square.getpixel((2, 8)), read_picture(content).getpixel((10, 8)), atol=9)


def test_pictures_in_memory():
    assert to_rgb(clear("RGBA")).getpixel((24, 8)) == WHITE
    assert to_pixels(clear("RGBA"))[:, 8, 24].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UnreadablePicture, match="mode F"):
        to_rgb(Image.new("F", (8, 8)))


def test_nothing_else_opens_pictures():
    """Another way in would show, rate or train on other pixels."""
    sources = Path(sayso.base.pictures.__file__).parents[1].rglob("*.py")
    opened = [p.name for p in sources if "Image.open(" in p.read_text(encoding="utf-8")]
    assert opened == ["pictures.py"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_picture_read(orientation: int, tmp_path: Path):
    content = turned(orientation, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(content)
    assert picture_size(content) == picture_size(tmp_path / "a.jpg") == read_picture(content).size


def test_damaged_metadata_means_none():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    assert read_picture(saved(halves(), "JPEG", quality=95, exif=exif)).size == (32, 16)

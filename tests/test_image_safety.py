"""Image files: what is no grey image is refused by name, and nothing that exists is harmed."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_files import copy, random_stack, write_ome
from PIL import Image

from photonstep.runtime.errors import ImageError, ShapeError
from photonstep.runtime.images import ImageWriter, open_image


@pytest.fixture
def stack():
    return random_stack()


def test_a_stack_does_not_fit_in_a_png(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[:, 0, 0], photometric="minisblack")
    with pytest.raises(ImageError, match=r"PNG holds one.*write a \.tif"):
        copy(tmp_path / "in.tif", tmp_path / "out.png")


REFUSED = {
    "rgb": (
        lambda p: tifffile.imwrite(p, np.zeros((32, 32, 3), np.uint8)),
        "split the channels",
    ),
    "palette": (
        lambda p: tifffile.imwrite(
            p,
            np.zeros((32, 32), np.uint8),
            colormap=np.zeros((3, 256), np.uint16),
            photometric="palette",
        ),
        "colour table",
    ),
    "white-is-zero": (
        lambda p: tifffile.imwrite(p, np.zeros((32, 32), np.uint8), photometric="miniswhite"),
        "MINISWHITE",
    ),
    "int16": (
        lambda p: tifffile.imwrite(p, np.zeros((32, 32), np.int16)),
        "int16.*float32",
    ),
    "float64": (lambda p: tifffile.imwrite(p, np.zeros((32, 32))), "float64"),
    "bool": (
        lambda p: tifffile.imwrite(p, np.zeros((32, 32), bool)),
        "expected grey|expected one of",
    ),
    "two images": (
        lambda p: [tifffile.imwrite(p, np.zeros((n, 32), np.uint8), append=n > 30) for n in (30, 50)],
        "2 separate images",
    ),
    "empty": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "text": (lambda p: p.write_text("not an image at all"), "not a TIFF"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_grey_image_is_refused_by_name(tmp_path, case):
    write, message = REFUSED[case]
    write(tmp_path / "in.tif")
    with pytest.raises(ImageError, match=rf"in\.tif: .*{message}"):
        open_image(tmp_path / "in.tif")


def test_absent_folder_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"x")
    for path, message in (
        (tmp_path / "no.tif", "no such file"),
        (tmp_path, "folder"),
        (tmp_path / "a.czi", "unknown image format"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(path)


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "1"])
def test_colour_png_is_refused(tmp_path, mode):
    Image.new(mode, (32, 32)).save(tmp_path / "in.png")
    with pytest.raises(ImageError, match=r"in\.png: PNG mode is .*split the channels"):
        open_image(tmp_path / "in.png")


@pytest.mark.parametrize("kind", ["ome", "ome-deflate", "imagej", "plain", "png"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.9, 0.94])
def test_truncated_files_are_refused_by_name_and_leave_no_output(tmp_path, stack, kind, share):
    suffix = ".png" if kind == "png" else ".tif"
    whole, cut, out = (
        tmp_path / f"whole{suffix}",
        tmp_path / f"cut{suffix}",
        tmp_path / f"out{suffix}",
    )
    if kind == "png":
        Image.fromarray(stack[0, 0, 0]).save(whole)
    elif kind.startswith("ome"):
        write_ome(whole, stack, **({"compression": "zlib"} if "deflate" in kind else {}))
    else:
        tifffile.imwrite(whole, stack[0], imagej=kind == "imagej", photometric="minisblack")
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(ImageError, match=rf"cut{suffix}: "):
        copy(cut, out)
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, cut.name}


def test_damaged_pixels_are_refused_by_name(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0], photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(tmp_path / "in.tif") as file:
        offset, count = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    content = bytearray((tmp_path / "in.tif").read_bytes())
    content[offset + count // 2] ^= 0xFF
    (tmp_path / "in.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"in\.tif: plane 2 cannot be read"):
        copy(tmp_path / "in.tif", tmp_path / "out.tif")


def test_entity_expansion_in_ome_xml_is_refused(tmp_path, stack):
    write_ome(tmp_path / "in.ome.tif", stack)
    xml = tifffile.tiffcomment(tmp_path / "in.ome.tif")
    bomb = xml.replace("<OME", '<!DOCTYPE OME [<!ENTITY a "aaaa">]><OME', 1)
    tifffile.tiffcomment(tmp_path / "in.ome.tif", bomb.encode())
    with pytest.raises(ImageError, match="document type"):
        open_image(tmp_path / "in.ome.tif")


def test_existing_outputs_survive_unless_overwritten(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0, 0])
    (tmp_path / "out.tif").write_bytes(b"precious")
    with pytest.raises(ImageError, match=r"out\.tif: exists already.*--overwrite"):
        copy(tmp_path / "in.tif", tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == b"precious"
    copy(tmp_path / "in.tif", tmp_path / "out.tif", overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), stack[0, 0, 0])


def test_an_output_that_appears_meanwhile_survives(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0, 0])

    def someone_else_writes(plane):
        (tmp_path / "out.tif").write_bytes(b"precious")
        return plane

    with pytest.raises(ImageError, match="appeared while"):
        copy(tmp_path / "in.tif", tmp_path / "out.tif", someone_else_writes)
    assert (tmp_path / "out.tif").read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("alias", ["in.tif", "link.tif", "hard.tif"])
def test_the_input_is_never_overwritten(tmp_path, stack, alias):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0, 0])
    before = (tmp_path / "in.tif").read_bytes()
    (tmp_path / "link.tif").symlink_to(tmp_path / "in.tif")
    os.link(tmp_path / "in.tif", tmp_path / "hard.tif")
    with pytest.raises(ImageError, match="input itself"):
        copy(tmp_path / "in.tif", tmp_path / alias, overwrite=True)
    assert (tmp_path / "in.tif").read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_writing_leaves_nothing(tmp_path, stack, error):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0], photometric="minisblack")
    (tmp_path / "out.tif").write_bytes(b"precious")

    def interrupt(plane):
        assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
        raise error

    with pytest.raises(error):
        copy(tmp_path / "in.tif", tmp_path / "out.tif", interrupt, overwrite=True)
    assert (tmp_path / "out.tif").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_writer_refuses_wrong_and_missing_planes(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0], photometric="minisblack")
    with open_image(tmp_path / "in.tif") as reader:
        with (
            pytest.raises(ShapeError, match=r"\(40, 48\) uint16"),
            ImageWriter(tmp_path / "o.tif", like=reader) as writer,
        ):
            writer.write(np.zeros((40, 48), np.uint8))
        with (
            pytest.raises(ImageError, match="1 of 4 planes"),
            ImageWriter(tmp_path / "o.tif", like=reader) as writer,
        ):
            writer.write(reader.plane((0,)))
        with (
            pytest.raises(ImageError, match="already holds all 4"),
            ImageWriter(tmp_path / "o.tif", like=reader) as writer,
        ):
            for _ in range(5):
                writer.write(reader.plane((0,)))
    assert not (tmp_path / "o.tif").exists()


def test_outputs_follow_the_umask(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0, 0])
    before = os.umask(0o022)
    try:
        copy(tmp_path / "in.tif", tmp_path / "out.tif")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(tmp_path / "out.tif").stat().st_mode) == 0o644

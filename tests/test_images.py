"""Image files: what comes in goes out, and nothing that exists is harmed. Files are written by tifffile and Pillow."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from photonstep.runtime import tiff
from photonstep.runtime.errors import ImageError, ShapeError
from photonstep.runtime.images import ImageWriter, open_image

PROVENANCE = {
    "photonstep": "0.1.0",
    "bundle": {"name": "base", "sha256": "0" * 64},
    "plan": {"steps": 1},
}
SHAPE = (3, 2, 4, 40, 48)  # TCZYX


@pytest.fixture
def stack():
    return np.random.default_rng(0).integers(90, 4000, SHAPE, dtype=np.uint16)


def write_ome(path, stack, axes="TCZYX", **options):
    metadata = {
        "axes": axes,
        "PhysicalSizeX": 108.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.109,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 0.5,
        "PhysicalSizeZUnit": "µm",
        "TimeIncrement": 2.5,
        "TimeIncrementUnit": "s",
        "Channel": {"Name": ["DAPI", "Zellkern µ"]},
        "Plane": {"DeltaT": [0.1 * n for n in range(24)]},
    }
    if "C" not in axes:
        del metadata["Channel"]
        del metadata["Plane"]
    tifffile.imwrite(path, stack, ome=True, photometric="minisblack", metadata=metadata, **options)


def copy(source, target, transform=lambda plane: plane, **options):
    with (
        open_image(source) as reader,
        ImageWriter(target, like=reader, **options) as writer,
    ):
        for _, plane in reader.planes():
            writer.write(transform(plane))
    return target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True, "tile": (16, 32)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "rowsperstrip": 7},
    ],
    ids=["plain", "tiled-deflate", "bigtiff", "big-endian", "strips"],
)
def test_ome_tiff_keeps_pixels_axes_and_metadata(tmp_path, stack, options):
    write_ome(tmp_path / "in.ome.tif", stack, **options)
    copy(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif", provenance=PROVENANCE)
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert file.series[0].axes == "TCZYX"
        np.testing.assert_array_equal(file.asarray(), stack)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        annotation = tifffile.xml2dict(file.ome_metadata)["OME"]["StructuredAnnotations"]["CommentAnnotation"]
    assert (
        pixels["PhysicalSizeX"],
        pixels["PhysicalSizeXUnit"],
        pixels["PhysicalSizeZ"],
    ) == (108.0, "nm", 0.5)
    assert (pixels["TimeIncrement"], pixels["TimeIncrementUnit"]) == (2.5, "s")
    assert [channel["Name"] for channel in pixels["Channel"]] == ["DAPI", "Zellkern µ"]
    assert [plane["DeltaT"] for plane in pixels["Plane"]] == pytest.approx([0.1 * n for n in range(24)])
    assert json.loads(annotation["Value"]) == PROVENANCE
    with open_image(tmp_path / "out.ome.tif") as reader:
        assert reader.pixel_size_um == pytest.approx((0.109, 0.108))
        assert reader.provenance == PROVENANCE


def test_ome_tiff_restored_twice_keeps_both_records(tmp_path, stack):
    write_ome(tmp_path / "in.ome.tif", stack)
    copy(tmp_path / "in.ome.tif", tmp_path / "one.ome.tif", provenance=PROVENANCE)
    copy(
        tmp_path / "one.ome.tif",
        tmp_path / "two.ome.tif",
        provenance={"photonstep": "0.2.0"},
    )
    with open_image(tmp_path / "two.ome.tif") as reader:
        assert reader.provenance == {"photonstep": "0.2.0"}
        assert reader.metadata.description.count("<CommentAnnotation") == 2


def test_old_ome_schema_gets_its_own_annotation_namespace(tmp_path, stack):
    write_ome(tmp_path / "in.ome.tif", stack)
    old = tifffile.tiffcomment(tmp_path / "in.ome.tif").replace("OME/2016-06", "OME/2013-06")
    tifffile.tiffcomment(tmp_path / "in.ome.tif", old.encode())
    copy(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif", provenance=PROVENANCE)
    with open_image(tmp_path / "out.ome.tif") as reader:
        assert "http://www.openmicroscopy.org/Schemas/SA/2013-06" in reader.metadata.description
        assert (reader.axes, reader.provenance) == ("TCZYX", PROVENANCE)


def test_ome_set_of_two_files_is_one_image(tmp_path, stack):
    write_ome(tmp_path / "a.ome.tif", stack[:2, 0, 0], axes="TYX")
    tifffile.imwrite(tmp_path / "b.ome.tif", stack[2, 0, 0], metadata=None)
    xml = tifffile.tiffcomment(tmp_path / "a.ome.tif").replace('SizeT="2"', 'SizeT="3"')
    start, _, rest = xml.partition("<TiffData")
    files = [("a.ome.tif", 0, 0), ("a.ome.tif", 1, 1), ("b.ome.tif", 0, 2)]
    for name, ifd, t in files:
        uuid = f'<UUID FileName="{name}">urn:uuid:{name[0]}</UUID>'
        start += f'<TiffData IFD="{ifd}" FirstT="{t}" PlaneCount="1">{uuid}</TiffData>'
    xml = start + rest[rest.index("</Pixels>") :]
    tifffile.tiffcomment(tmp_path / "a.ome.tif", xml.encode())
    copy(tmp_path / "a.ome.tif", tmp_path / "out.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.ome.tif"), stack[:, 0, 0])
    with (
        open_image(tmp_path / "a.ome.tif") as reader,
        pytest.raises(ImageError, match=r"b\.ome\.tif.*input itself"),
    ):
        ImageWriter(tmp_path / "b.ome.tif", like=reader, overwrite=True)
    (tmp_path / "b.ome.tif").unlink()
    with pytest.raises(ImageError, match=r"a\.ome\.tif: .*b\.ome\.tif"):
        copy(tmp_path / "a.ome.tif", tmp_path / "again.ome.tif")
    assert not (tmp_path / "again.ome.tif").exists()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["contiguous", "deflate"])
def test_imagej_hyperstack_keeps_pixels_axes_and_metadata(tmp_path, stack, options):
    labels = [f"plane {n}" for n in range(24)]
    metadata = {
        "axes": "TZCYX",
        "unit": "um",
        "spacing": 0.5,
        "finterval": 2.5,
        "min": 3.0,
        "Labels": labels,
        "Info": "dye",
    }
    hyperstack = stack.swapaxes(1, 2)
    tifffile.imwrite(
        tmp_path / "in.tif",
        hyperstack,
        imagej=True,
        resolution=(10.0, 8.0),
        metadata=metadata,
        **options,
    )
    with open_image(tmp_path / "in.tif") as reader:
        assert (reader.axes, reader.pixel_size_um) == (
            "TZCYX",
            pytest.approx((0.125, 0.1)),
        )
        np.testing.assert_array_equal(reader.plane((2, 3, 1)), hyperstack[2, 3, 1])
    copy(tmp_path / "in.tif", tmp_path / "out.tif", provenance=PROVENANCE)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "TZCYX"
        np.testing.assert_array_equal(file.asarray(), hyperstack)
        found = file.imagej_metadata
    assert (found["unit"], found["spacing"], found["finterval"], found["min"]) == (
        "um",
        0.5,
        2.5,
        3.0,
    )
    assert found["Labels"] == labels
    assert found["Info"].startswith("dye")
    with open_image(tmp_path / "out.tif") as reader:
        assert reader.pixel_size_um == pytest.approx((0.125, 0.1))
        assert reader.provenance == PROVENANCE


def test_imagej_copy_in_photoelectrons_drops_the_display_range(tmp_path, stack):
    metadata = {"axes": "TYX", "min": 90.0, "max": 4000.0}
    tifffile.imwrite(tmp_path / "in.tif", stack[:, 0, 0], imagej=True, metadata=metadata)
    copy(
        tmp_path / "in.tif",
        tmp_path / "out.tif",
        lambda plane: plane / np.float32(7),
        dtype=np.float32,
    )
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        np.testing.assert_array_equal(file.asarray(), stack[:, 0, 0] / np.float32(7))
        assert not {"min", "max"} & set(file.imagej_metadata)


def test_plain_tiff_keeps_description_and_resolution(tmp_path, stack):
    options = {
        "photometric": "minisblack",
        "resolution": (1e5, 1e5),
        "resolutionunit": "CENTIMETER",
    }
    tifffile.imwrite(
        tmp_path / "a.tif",
        stack[:, 0, 0],
        metadata={"axes": "TYX", "exposure_s": 0.01},
        **options,
    )
    tifffile.imwrite(
        tmp_path / "b.tif",
        stack[0, 0, 0],
        metadata=None,
        description="Exp. 3",
        **options,
    )
    for name, shape, axes in (("a", (3, 40, 48), "TYX"), ("b", (40, 48), "YX")):
        copy(
            tmp_path / f"{name}.tif",
            tmp_path / f"{name}-out.tif",
            provenance=PROVENANCE,
        )
        with open_image(tmp_path / f"{name}-out.tif") as reader:
            assert (reader.shape, reader.axes, reader.provenance) == (
                shape,
                axes,
                PROVENANCE,
            )
            assert reader.pixel_size_um == pytest.approx((0.1, 0.1))
    assert json.loads(tifffile.tiffcomment(tmp_path / "a-out.tif"))["exposure_s"] == 0.01
    assert json.loads(tifffile.tiffcomment(tmp_path / "b-out.tif"))["Description"] == "Exp. 3"


def test_screen_resolution_is_no_pixel_size(tmp_path, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack[0, 0, 0], resolution=(72, 72), resolutionunit="INCH")
    with open_image(tmp_path / "in.tif") as reader:
        assert reader.pixel_size_um is None


def test_planes_of_one_volumetric_page_come_apart(tmp_path, stack):
    tifffile.imwrite(
        tmp_path / "z.tif",
        stack[0, 0],
        volumetric=True,
        photometric="minisblack",
        compression="zlib",
    )
    tifffile.imwrite(
        tmp_path / "c.tif",
        stack[0, :, 0],
        planarconfig="separate",
        photometric="minisblack",
    )
    copy(tmp_path / "z.tif", tmp_path / "z-out.tif")
    copy(tmp_path / "c.tif", tmp_path / "c-out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "z-out.tif"), stack[0, 0])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c-out.tif"), stack[0, :, 0])
    with open_image(tmp_path / "c-out.tif") as reader:
        assert reader.axes == "CYX"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_dtype_round_trips(tmp_path, dtype):
    image = (np.random.default_rng(1).random((2, 17, 33)) * 250).astype(dtype)
    if dtype == "float32":
        image[0, 0, :3] = np.nan, np.inf, -1
    write_ome(tmp_path / "in.ome.tif", image, axes="TYX", compression="zlib")
    copy(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.ome.tif"), image)


def test_large_outputs_are_bigtiff(tmp_path, stack, monkeypatch):
    monkeypatch.setattr(tiff, "BIGTIFF_NBYTES", stack.nbytes - 1)
    write_ome(tmp_path / "in.ome.tif", stack)
    copy(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif")
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), stack)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_round_trips_with_texts_and_resolution(tmp_path, dtype):
    image = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (31, 21), dtype=dtype)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Ada")
    Image.fromarray(image).save(tmp_path / "in.png", pnginfo=texts, dpi=(254000, 254000))
    copy(tmp_path / "in.png", tmp_path / "out.png", provenance=PROVENANCE)
    with open_image(tmp_path / "out.png") as reader:
        np.testing.assert_array_equal(reader.plane(()), image)
        assert (reader.dtype, reader.axes, reader.provenance) == (
            np.dtype(dtype),
            "YX",
            PROVENANCE,
        )
        assert reader.metadata.texts == {"Author": "Ada"}
        assert reader.pixel_size_um == pytest.approx((0.1, 0.1))
    copy(tmp_path / "in.png", tmp_path / "out.tif")
    with open_image(tmp_path / "out.tif") as reader:
        assert reader.pixel_size_um == pytest.approx((0.1, 0.1))


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


def test_reading_a_stack_holds_one_plane_in_memory(tmp_path):
    import tracemalloc

    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for n in range(64):
            writer.write(
                np.full((256, 256), n, np.uint16),
                contiguous=False,
                compression="zlib",
                metadata=None,
            )
    tracemalloc.start()
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 256 * 256 * 2
    with open_image(tmp_path / "out.tif") as reader:
        assert reader.shape == (64, 256, 256)
        np.testing.assert_array_equal(reader.plane((63,)), 63)

"""Image files: what comes in goes out. The files are written and read back by tifffile and Pillow."""

import json
import tracemalloc

import numpy as np
import pytest
import tifffile
from image_files import PROVENANCE, copy, random_stack, write_ome
from PIL import Image, PngImagePlugin

from photonstep.runtime import tiff
from photonstep.runtime.errors import ImageError
from photonstep.runtime.images import ImageWriter, open_image


@pytest.fixture
def stack():
    return random_stack()


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


def test_reading_a_stack_holds_one_plane_in_memory(tmp_path):
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

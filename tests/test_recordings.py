"""A user's recordings: kinds told apart, fields kept whole, pixels in the runtime's coordinates, bad files named."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.testing import assert_allclose
from PIL import Image
from simulated_frames import lag_1, photograph, photons_of

import photonstep as ps
from photonstep.models import measured, recordings, recorrupt, restored
from photonstep.models.checkpoint import load_network
from photonstep.models.data import NORMALISATION
from photonstep.models.guide import NetworkGuide, restore_frame
from photonstep.models.measured import MeasuredPool, curvature_bias, fit_reference, observe_frame
from photonstep.models.network import Denoiser, NetworkConfig
from photonstep.models.recordings import PlaneAt, Scene, Source, check_scenes, find_scenes, split_fields
from photonstep.models.zarr_images import ZarrReader
from photonstep.runtime.errors import CameraError, ImageError, PhotonstepError, ShapeError, TrainingError
from photonstep.runtime.normalise import RangeTracker

CAMERA = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.0)


def write(path, array, axes=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": axes} if axes else None)
    return path


def frame(seed=0, shape=(64, 80), level=40):
    return np.random.default_rng(seed).poisson(level, shape).astype(np.uint16)


@pytest.fixture
def paired(tmp_path):
    """Three fields of two channels, noisy and clean."""
    for name in "abc":
        write(tmp_path / "noisy" / f"{name}.tif", np.stack([frame(1), frame(2)]), "CYX")
        write(tmp_path / "clean" / f"{name}.ome.tif", np.stack([frame(1), frame(2)]), "CYX")
    return tmp_path


# --- kinds ---


def test_two_folders_with_equal_names_are_pairs(paired):
    scenes = find_scenes(Source(path=paired))
    assert {s.kind for s in scenes} == {"paired"}
    assert [s.field for s in scenes] == ["a", "a", "b", "b", "c", "c"]
    assert scenes[1].frames == (PlaneAt(paired / "noisy" / "a.tif", (1,)),)
    assert scenes[1].reference == PlaneAt(paired / "clean" / "a.ome.tif", (1,))
    assert sum(s.share for s in scenes) == pytest.approx(1)


def test_several_captures_share_a_reference(tmp_path):
    write(tmp_path / "noisy" / "a.tif", np.stack([frame(i) for i in range(3)]), "TYX")
    write(tmp_path / "reference" / "a.tif", frame(9))
    scenes = find_scenes(Source(path=tmp_path))
    assert len(scenes) == 3
    assert {s.reference for s in scenes} == {PlaneAt(tmp_path / "reference" / "a.tif", ())}


def test_pages_of_one_file_are_captures_and_last_their_reference(tmp_path):
    write(tmp_path / "a.tif", np.zeros((3, 2, 64, 64), np.uint8), "TCYX")
    first, second = find_scenes(Source(path=tmp_path, kind="paired"))
    assert [p.index for p in first.frames] == [(0, 0), (1, 0)]
    assert first.reference.index == (2, 0)
    assert second.reference.index == (2, 1)


def test_repeated_frames_are_one_scene_a_channel(tmp_path):
    write(tmp_path / "a.tif", np.zeros((4, 2, 64, 64), np.uint8), "TCYX")
    scenes = find_scenes(Source(path=tmp_path / "a.tif", kind="repeated"))
    assert [len(s.frames) for s in scenes] == [4, 4]
    assert {s.reference for s in scenes} == {None}


@pytest.mark.parametrize(("axes", "scenes"), [("TYX", 1), ("ZYX", 3), ("CYX", 3)])
def test_only_a_time_lapse_shares_its_camera(tmp_path, axes, scenes):
    write(tmp_path / "noisy" / "a.tif", np.zeros((3, 64, 64), np.uint16), axes)
    assert len(find_scenes(Source(path=tmp_path))) == scenes


def test_folder_names_tell_clean_and_noisy_alone(tmp_path):
    write(tmp_path / "one" / "clean" / "a.tif", frame(shape=(128, 130)))
    write(tmp_path / "two" / "noisy" / "a.tif", frame())
    assert find_scenes(Source(path=tmp_path / "one"))[0].kind == "clean"
    assert find_scenes(Source(path=tmp_path / "two"))[0].kind == "noisy"


def test_what_cannot_be_told_is_asked(tmp_path):
    write(tmp_path / "a.tif", frame())
    with pytest.raises(TrainingError, match="--kind paired"):
        find_scenes(Source(path=tmp_path))


def test_png_and_subfolders(tmp_path):
    for name in ("one", "two"):
        for capture in range(2):
            path = tmp_path / "noisy" / name / f"{capture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(capture).astype(np.uint8)).save(path)
    write(tmp_path / "noisy" / ".hidden.tif", frame())
    scenes = find_scenes(Source(path=tmp_path))
    assert [s.field for s in scenes] == ["one", "one", "two", "two"]


# --- OME-Zarr ---


@pytest.fixture
def ome_zarr(tmp_path):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    pixels = np.random.default_rng(0).integers(90, 4000, (3, 2, 64, 80), dtype=np.uint16)

    def make(path, ome=True, **changes):
        group = zarr.open_group(str(path), mode="w", zarr_format=3 if ome else 2)
        array = group.create_array("0", shape=pixels.shape, chunks=(1, 1, 64, 80), dtype=pixels.dtype)
        array[:] = pixels
        image = {"axes": [{"name": n} for n in "tcyx"], "datasets": [{"path": "0"}], **changes}
        group.attrs.update({"ome": {"multiscales": [image]}} if ome else {"multiscales": [image]})
        return path

    make.pixels = pixels
    return make


@pytest.mark.parametrize("ome", [True, False], ids=["0.5", "0.4"])
def test_ome_zarr_is_read_plane_by_plane(tmp_path, ome_zarr, ome):
    store = ome_zarr(tmp_path / "noisy" / "a.ome.zarr", ome)
    reader = ZarrReader(store)
    assert (reader.axes, reader.shape, reader.dtype) == ("TCYX", (3, 2, 64, 80), np.uint16)
    np.testing.assert_array_equal(reader.plane((2, 1)), ome_zarr.pixels[2, 1])
    scenes = find_scenes(Source(path=tmp_path))
    assert [(s.field, len(s.frames)) for s in scenes] == [("a", 3), ("a", 3)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": [{"path": "../../x"}]}, "inside the store"),
        ({"datasets": [{"path": "7"}]}, "level '7'"),
        ({"datasets": []}, "multiscales"),
        ({"axes": [{"name": n} for n in "yxtc"]}, "end in YX"),
        ({"axes": 3}, "multiscales"),
    ],
)
def test_damaged_ome_zarr_is_refused(tmp_path, ome_zarr, changes, says):
    with pytest.raises(ImageError, match=says):
        ZarrReader(ome_zarr(tmp_path / "a.zarr", **changes))


def test_a_folder_that_is_no_zarr_store_inside(tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    (tmp_path / "zarr.json").write_text("{not json")
    with pytest.raises(ImageError, match="OME-Zarr"):
        find_scenes(Source(path=tmp_path, kind="noisy"))


# --- what is wrong is said, with the file's name ---


def nan_frame():
    bad = frame().astype(np.float32)
    bad[3, 4] = np.nan
    return bad


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (nan_frame(), "NaN"),
        (np.full((64, 64), 7, np.uint8), "constant"),
        (np.zeros((32, 64), np.uint8), "32x64 px"),
        (np.zeros((64, 64), np.int32), "int32"),
        (np.zeros((64, 64, 3), np.uint8), "RGB|axes|grey"),
    ],
)
def test_frames_that_cannot_teach_are_named(tmp_path, array, says):
    path = tmp_path / "noisy" / "bad.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    with pytest.raises(PhotonstepError, match=says) as caught:
        check_scenes(find_scenes(Source(path=tmp_path)))
    assert "bad.tif" in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    path = write(tmp_path / "noisy" / "cut.tif", frame())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PhotonstepError, match=r"cut\.tif"):
        check_scenes(find_scenes(Source(path=tmp_path)))


def test_a_frame_without_partner_is_named(paired):
    write(paired / "noisy" / "lonely.tif", frame())
    with pytest.raises(TrainingError, match="lonely"):
        find_scenes(Source(path=paired))


def test_a_reference_of_another_shape_is_named(paired):
    write(paired / "clean" / "b.ome.tif", frame(shape=(64, 64)))
    with pytest.raises(TrainingError, match=r"b\.ome\.tif"):
        find_scenes(Source(path=paired))


def test_a_reference_of_another_field_is_named(paired):
    rng = np.random.default_rng(3)
    scenes = []
    for name in ("noisy", "clean"):
        lumps = np.kron(rng.integers(0, 200, (8, 10)), np.ones((8, 8))).astype(np.uint16)
        write(paired / name / ("a.tif" if name == "noisy" else "a.ome.tif"), rng.poisson(lumps + 20).astype(np.uint16))
        scenes = [s for s in find_scenes(Source(path=paired)) if s.field == "a"] if name == "clean" else []
    with pytest.raises(TrainingError, match=r"a\.tif.*correlate"):
        MeasuredPool(scenes).observation(0, 0)
    with pytest.raises(TrainingError, match=r"a\.tif.*correlate"):
        measured.check_agreement(scenes)


@pytest.mark.parametrize("kernel", [None, ((1.0, 0.7), (1.0, 0.7))])
def test_a_time_lapse_is_not_taken_for_repeated_frames(tmp_path, photons, kernel):
    def stack(*scenes):
        return np.stack([photograph(p, gain=0.5, offset=100.0, kernel=kernel, seed=i) for i, p in enumerate(scenes)])

    still, moving = stack(photons, photons), stack(photons, np.roll(photons, 20, 0))
    write(tmp_path / "still" / "a.tif", still, "TYX")
    write(tmp_path / "moving" / "a.tif", moving, "TYX")
    measured.check_agreement(find_scenes(Source(path=tmp_path / "still", kind="repeated", camera=CAMERA)))
    with pytest.warns(UserWarning, match="--kind noisy"):
        measured.check_agreement(find_scenes(Source(path=tmp_path / "moving", kind="repeated", camera=CAMERA)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"kind": "film"}, "film"), ({"share": 0.0}, "share"), ({"share": float("nan")}, "share")],
)
def test_impossible_sources_are_refused(settings, says):
    with pytest.raises(TrainingError, match=says):
        Source(path=Path("x"), **settings)


@pytest.mark.parametrize(
    ("folders", "kind", "says"),
    [
        ((), "noisy", "no such file"),
        (("empty",), "noisy", "no image"),
        (("noisy",), "paired", "no folder clean"),
        (("clean",), "noisy", "no folder noisy"),
        (("noisy",), "clean", "no folder clean"),
        (("noisy", "clean", "reference"), None, "both clean and reference"),
    ],
)
def test_folders_that_do_not_fit_the_kind(tmp_path, folders, kind, says):
    root = tmp_path / "data"
    for name in folders:
        (root / name).mkdir(parents=True)
    with pytest.raises(TrainingError, match=says):
        find_scenes(Source(path=root, kind=kind))


def test_one_page_is_not_repeated(tmp_path):
    write(tmp_path / "a.tif", frame())
    with pytest.raises(TrainingError, match="frames of the same field"):
        find_scenes(Source(path=tmp_path, kind="repeated"))


@pytest.mark.parametrize(("axes", "shape"), [("CYX", (3, 64, 64)), ("ZYX", (3, 64, 64)), ("ZCYX", (2, 3, 64, 64))])
def test_channels_and_z_planes_are_no_repeats(tmp_path, axes, shape):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint16), ome=True, photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(TrainingError, match=r"a\.ome\.tif: is (CYX|ZYX|ZCYX|CZYX) of .* needs frames .* along T"):
        find_scenes(Source(path=tmp_path, kind="repeated"))


def test_pages_without_any_axis_name_are_repeats(tmp_path):
    write(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint16))
    assert [len(s.frames) for s in find_scenes(Source(path=tmp_path, kind="repeated"))] == [3]


def test_clean_files_that_are_too_small_are_named_and_left_out(tmp_path):
    for name, side in (("large", 128), ("small", 127)):
        write(tmp_path / "clean" / f"{name}.tif", frame(shape=(side, 140)))
    with pytest.warns(UserWarning, match=r"left out 1 of 2 clean files, below 128 px a side: .*small\.tif"):
        scenes = find_scenes(Source(path=tmp_path))
    assert [s.field for s in scenes] == ["large"]
    assert scenes[0].share == 1


def test_a_camera_beside_the_files_is_theirs(paired):
    CAMERA.save(paired / "camera.json")
    assert {s.camera.source for s in find_scenes(Source(path=paired))} == {"given"}
    (paired / "camera.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CameraError, match=r"camera\.json"):
        find_scenes(Source(path=paired))


def test_a_camera_map_must_fit(paired):
    camera = ps.Camera(offset_adu=np.zeros((32, 32), np.float32))
    with pytest.raises(ShapeError, match=r"a\.tif"):
        find_scenes(Source(path=paired, camera=camera))


# --- the split ---


def scenes_of(fields):
    return [Scene(field=name, kind="noisy", frames=(PlaneAt(Path(name), ()),)) for name in fields]


@pytest.mark.parametrize("count", [2, 3, 10, 57])
def test_a_field_is_on_one_side_only(count):
    fields = [f"field{i}" for i in range(count)]
    train, held_out = split_fields(scenes_of([*fields, *fields]), 0.2)
    sides = [{s.field for s in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(fields)
    assert sides[0]
    assert sides[1]
    shuffled = split_fields(scenes_of(fields[::-1]), 0.2)[1]
    assert {s.field for s in shuffled} == sides[1]


def test_more_fields_move_none_of_those_there_were():
    names = [f"field{i}" for i in range(400)]

    def held_out_of(count):
        return {s.field for s in split_fields(scenes_of(names[:count]), 0.2)[1]}

    for count in (10, 15, 20, 57):
        assert held_out_of(count) == held_out_of(400) & set(names[:count])
    assert len(held_out_of(400)) == pytest.approx(80, abs=25)


@pytest.mark.parametrize(("share", "held_out"), [(0.0, {"field5"}), (1.0, {"field5", "field7"})])
def test_either_side_gets_a_field_where_there_are_two(share, held_out):
    """Their numbers, from the lowest: field5, field7, field3."""
    train, others = split_fields(scenes_of(["field3", "field5", "field7"]), share)
    assert {s.field for s in others} == held_out
    assert train


def test_one_field_is_trained_on():
    train, held_out = split_fields(scenes_of(["only"]), 0.2)
    assert len(train) == 1
    assert held_out == []


# --- training and runtime agree ---


@pytest.fixture(scope="module")
def photons(lysosome):
    return photons_of(lysosome, peak=60.0)


@pytest.fixture(scope="module")
def counts(photons):
    return photograph(photons, gain=0.5, offset=100.0, readout=1.0, dtype=np.uint16)


def test_the_shipped_bundle_normalises_as_training_does(restorer):
    assert restorer.bundle.manifest.normalisation == NORMALISATION


def test_a_recording_enters_training_as_the_runtime_sees_it(tmp_path, counts, photons, restorer):
    write(tmp_path / "noisy" / "a.tif", counts)
    write(tmp_path / "clean" / "a.tif", (photons / 0.5 + 100).astype(np.float32))
    pool = MeasuredPool(find_scenes(Source(path=tmp_path, camera=CAMERA)))
    seen = pool.observation(0, 0)
    z = CAMERA.stabilise(counts)
    expected = restorer.tracker().update(z)
    assert_allclose(seen.u, expected.to_model(z), atol=1e-6)
    assert seen.sigma == expected.sigma
    assert ((seen.u - seen.target) / seen.sigma).std() == pytest.approx(1, abs=0.06)


def test_the_guide_restores_as_the_runtime_does(counts, restorer):
    ours = restore_frame(load_network("base"), counts, CAMERA)
    theirs = restorer.restore(counts.astype(np.float32), camera=CAMERA, output="photoelectrons", steps=1).image
    # the runtime balances photons on top, a straight line close to the identity
    slope, shift = np.polyfit(ours.ravel(), theirs.ravel(), 1)
    assert slope == pytest.approx(1, abs=0.05)
    assert_allclose(slope * ours + shift, theirs, atol=2e-3 * theirs.max())


def test_references_are_brought_to_the_frames_scale(counts, photons):
    truth = photons / 0.5 + 100
    fitted = fit_reference(counts, 0.3 * truth - 20)
    assert_allclose(fitted, truth, rtol=0.02, atol=2)


@pytest.mark.parametrize("averaged", [1, 4])
@pytest.mark.parametrize("level", [1.5, 4.0, 20.0])
def test_repeated_targets_have_the_expectation_of_the_clean_frame(level, averaged):
    """The mean of the transform lies below the transform of the mean; most of it is put back."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(level, (averaged, 400, 400)) + rng.normal(0, 1.0, (averaged, 400, 400))
    adu = (frames / 0.5 + 100).astype(np.float32)
    target = adu.mean(0)
    truth = float(CAMERA.stabilise(np.full((4, 4), level / 0.5 + 100, np.float32)).mean())
    plain = float(CAMERA.stabilise(target).mean()) - truth
    put_back = plain + float(curvature_bias(target, CAMERA, averaged).mean())
    assert plain < -0.01 / averaged
    assert abs(put_back) < max(0.35 * abs(plain), 0.01)


# --- without a reference ---


@pytest.mark.parametrize("level", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("kernel", [None, ((1.0, 0.7), (1.0,))])
def test_recorrupted_noises_are_uncorrelated(level, kernel):
    """In photoelectrons, down to half a photon: the two share the frame's noise and cancel it with the added one."""
    clean = np.full((400, 400), level)
    raw = photograph(clean, gain=0.5, offset=100.0, readout=1.0, kernel=kernel)
    correlation = (lag_1(kernel[0]), 0.0) if kernel else (0.0, 0.0)
    camera = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.5, readout_noise_e=1.0, noise_correlation=correlation)
    frame_ = recorrupt.blind_frame(
        raw, camera, RangeTracker(NORMALISATION), guide=lambda f, c: (np.full(f.shape, level, np.float32), 1.0)
    )
    noise = recorrupt.correlated_noise(raw.shape, correlation, np.random.default_rng(1))
    x, x0 = recorrupt.recorrupt(frame_, noise)
    z, target = frame_.model_range.from_model(x), frame_.model_range.from_model(x0)
    truth = 2 * np.sqrt(level / 2 + 0.375 + 0.5)
    assert abs(np.corrcoef(z.ravel(), target.ravel())[0, 1]) < 0.03
    assert target.mean() == pytest.approx(truth, abs=0.03)
    along_y = np.corrcoef(z[1:].ravel(), z[:-1].ravel())[0, 1]
    assert along_y == pytest.approx(correlation[0], abs=0.06)


@pytest.mark.parametrize("wanted", [-0.3, 0.0, 0.2, 0.6])
def test_added_noise_is_correlated_as_the_camera_says(wanted):
    noise = recorrupt.correlated_noise((500, 500), (wanted, 0.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] == pytest.approx(wanted, abs=0.02)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_the_guide_finds_how_wrong_an_estimated_camera_is(photons):
    large = np.tile(photons, (2, 2))
    raw = photograph(large, gain=0.5, offset=100.0, readout=1.0)
    # the true variance is 0.8 of what this camera says
    wrong = ps.Camera(offset_adu=100.0, gain_e_per_adu=0.4, readout_noise_e=0.9, source="estimated")
    guide = NetworkGuide(load_network("base"))
    _, factor = guide(raw, wrong)
    assert factor == pytest.approx(0.8, abs=0.1)
    assert guide(raw, CAMERA)[1] == 1.0


def test_restorations_are_photographed_by_the_same_camera(photons):
    large = np.tile(photons, (2, 2))
    raw = photograph(large, gain=0.5, offset=100.0, readout=1.0)
    seen = restored.restored_frame(raw, CAMERA, NetworkGuide(load_network("base")), lambda: RangeTracker(NORMALISATION))
    full, half = seen.photons
    assert full.shape == (256, 256)
    assert half.shape == (128, 128)
    assert full.mean() == pytest.approx(large.mean(), rel=0.05)
    assert half.mean() == pytest.approx(large.mean(), rel=0.05)
    assert seen.ranges[0].sigma == pytest.approx(
        RangeTracker(NORMALISATION).update(CAMERA.stabilise(raw)).sigma, rel=0.1
    )
    again = restored.photograph(full, 1.0, (0.0, 0.0), 1.0, np.random.default_rng(0))
    assert np.var(again - full) == pytest.approx(np.mean(full) + 1, rel=0.05)


# --- batches ---


@pytest.mark.parametrize("kind", ["paired", "repeated", "noisy"])
def test_batches_of_every_kind(tmp_path, counts, photons, kind):
    stack = np.stack([photograph(photons, gain=0.5, offset=100.0, dtype=np.uint16, seed=i) for i in range(4)])
    write(tmp_path / "a.tif", stack, "TYX")
    scenes = find_scenes(Source(path=tmp_path, kind=kind, camera=CAMERA))
    torch.manual_seed(0)
    guide = NetworkGuide(Denoiser(NetworkConfig(widths=(16, 16))))
    for recorrupted in {False, kind == "noisy"}:
        pool = MeasuredPool(scenes, guide=guide, recorrupted=recorrupted)
        batch = pool.batch(5, 144, np.random.default_rng(3))  # larger than the frame: mirrored
        again = MeasuredPool(scenes, guide=guide, recorrupted=recorrupted).batch(5, 144, np.random.default_rng(3))
        for name in ("x", "x0", "sigma"):
            part = getattr(batch, name)
            assert part.shape == (5, 1, 144, 144)
            assert part.dtype == torch.float32
            assert torch.isfinite(part).all()
            assert torch.equal(part, getattr(again, name))
        assert batch.noise_correlation.shape == (5, 2)


def test_the_cache_stays_within_its_bytes(tmp_path, counts):
    write(tmp_path / "a.tif", np.stack([counts] * 6), "TYX")
    scenes = find_scenes(Source(path=tmp_path, kind="repeated", camera=CAMERA))
    pool = MeasuredPool(scenes, cache_bytes=3 * 2 * 4 * counts.size)
    for index in range(6):
        pool.observation(0, index)
    assert len(pool._observations) == 3


def test_a_turned_patch_takes_its_correlation_along():
    turn = measured._Turn((64, 64), 32, np.random.default_rng(0))
    turn._turns, turn._flipped = 1, False
    assert turn.axes((0.1, 0.6)) == (0.6, 0.1)
    ramp = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    steps = np.abs(np.diff(turn(ramp), axis=0)).max(), np.abs(np.diff(ramp, axis=1)).max()
    assert steps[0] == steps[1]


def test_observations_say_which_target_they_need(counts):
    seen = observe_frame(counts, CAMERA, "repeated", target=counts, averaged=3)
    assert seen.kind == "repeated"
    assert (seen.target >= seen.u).all()


def test_ambiguity_is_explained_in_one_place():
    assert all(kind in recordings.HOW_TO_TELL for kind in recordings.KINDS)

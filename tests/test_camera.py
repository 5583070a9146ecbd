"""The camera: impossible numbers are refused, files come back as they were, calibration finds what was simulated."""

import base64
import json
import re
import zlib
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from simulated_frames import lag_1, photograph

import photonstep as ps
from photonstep import Camera, CameraError, ShapeError

MAP = np.full((20, 24), 0.5, np.float32)


# --- construction ---


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"gain_e_per_adu": 0}, "lowest gain_e_per_adu is 0"),
        ({"gain_e_per_adu": -0.4}, "-0.4"),
        ({"gain_e_per_adu": float("nan")}, "not finite"),
        ({"gain_e_per_adu": float("inf")}, "not finite"),
        ({"gain_e_per_adu": True}, "bool"),
        ({"gain_e_per_adu": "0.5"}, "expected a number"),
        ({"gain_e_per_adu": None}, "object"),
        ({"gain_e_per_adu": 1 + 2j}, "complex"),
        ({"gain_e_per_adu": [1.0, 2.0]}, r"\(2,\)"),
        ({"gain_e_per_adu": np.where(np.eye(4, dtype=bool), 0, 1.0)}, "lowest gain_e_per_adu is 0"),
        ({"offset_adu": np.zeros((2, 3, 4))}, r"\(2, 3, 4\)"),
        ({"offset_adu": np.zeros((0, 4))}, r"\(0, 4\)"),
        ({"offset_adu": 1e19}, "1e18"),
        ({"offset_adu": np.full((4, 4), 1e39)}, "1e18"),
        ({"offset_adu": np.where(np.eye(4, dtype=bool), np.nan, 100.0)}, "offset_adu holds values that are not finite"),
        ({"readout_noise_e": -1}, "lowest readout_noise_e is -1"),
        ({"offset_adu": MAP, "gain_e_per_adu": MAP.T}, r"one shape for all maps"),
        ({"noise_correlation": (1.0, 0.0)}, "between -1 and 1"),
        ({"noise_correlation": (0.1,)}, "two numbers"),
        ({"noise_correlation": 0.3}, "two numbers"),
        ({"noise_correlation": ("a", "b")}, "expected a number"),
        ({"noise_correlation": (float("nan"), 0.0)}, "not finite"),
        ({"saturation_adu": "full"}, "saturation_adu"),
        ({"saturation_adu": float("nan")}, "saturation_adu"),
        ({"saturation_adu": MAP}, "expected one number"),
        ({"gain_interval_e_per_adu": (0.5, 0.4)}, "low <= high"),
        ({"source": "guessed"}, "given, estimated, calibrated"),
    ],
)
def test_impossible_numbers_are_refused_with_their_value(numbers, says):
    with pytest.raises(CameraError, match=says):
        Camera(**numbers)


def test_a_camera_is_frozen_and_keeps_its_own_maps():
    mine = MAP.copy()
    camera = Camera(gain_e_per_adu=mine)
    mine[:] = 7
    assert (camera.gain_e_per_adu == 0.5).all()
    with pytest.raises(ValueError, match="read-only"):
        camera.gain_e_per_adu[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        camera.offset_adu = 3


def test_numbers_of_any_kind_become_plain_floats():
    camera = Camera(offset_adu=np.uint16(100), gain_e_per_adu=np.float32(0.5), readout_noise_e=2)
    assert [type(n) for n in (camera.offset_adu, camera.gain_e_per_adu, camera.readout_noise_e)] == [float] * 3
    assert (camera.offset_adu, camera.source) == (100.0, "given")


def test_a_region_of_interest_cuts_the_maps_and_keeps_the_scalars():
    ramp = np.arange(20 * 24, dtype=np.float32).reshape(20, 24)
    camera = Camera(offset_adu=ramp, gain_e_per_adu=0.5, noise_correlation=(0.1, 0.2))
    region = camera.crop(slice(3, 10), slice(5, 9))
    np.testing.assert_array_equal(region.offset_adu, ramp[3:10, 5:9])
    assert (region.gain_e_per_adu, region.noise_correlation, region.map_shape) == (0.5, (0.1, 0.2), (7, 4))


def test_frames_that_do_not_fit_the_maps_are_refused():
    camera = Camera(gain_e_per_adu=MAP)
    with pytest.raises(ShapeError, match=r"gain_e_per_adu map is \(20, 24\), frame is \(20, 20\)"):
        camera.stabilise(np.zeros((20, 20), np.uint16))


# --- files ---


def fields_of(camera):
    return {name: getattr(camera, name) for name in Camera.__dataclass_fields__}


@pytest.mark.parametrize(
    "camera",
    [
        Camera(),
        Camera(offset_adu=100, gain_e_per_adu=0.46, readout_noise_e=1.6, saturation_adu=65535, source="calibrated"),
        Camera(noise_correlation=(0.25, -0.125), gain_interval_e_per_adu=(0.45, 0.47), source="estimated"),
        Camera(
            offset_adu=np.random.default_rng(0).normal(100, 2, (33, 17)),
            gain_e_per_adu=0.46,
            readout_noise_e=np.random.default_rng(1).uniform(1, 9, (33, 17)),
        ),
    ],
    ids=["plain", "calibrated", "correlated", "maps"],
)
def test_a_saved_camera_comes_back_exactly(camera, tmp_path):
    camera.save(tmp_path / "camera.json")
    loaded = Camera.load(tmp_path / "camera.json")
    for name, value in fields_of(camera).items():
        np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
        assert type(getattr(loaded, name)) is type(value)
    assert [p.name for p in tmp_path.iterdir()] == ["camera.json"]


def test_saving_can_refuse_to_overwrite(tmp_path):
    path = tmp_path / "camera.json"
    Camera(offset_adu=1).save(path)
    with pytest.raises(CameraError, match="exists"):
        Camera(offset_adu=2).save(path, overwrite=False)
    assert Camera.load(path).offset_adu == 1
    Camera(offset_adu=2).save(path)
    assert Camera.load(path).offset_adu == 2


def test_saving_into_a_missing_folder_is_a_camera_error(tmp_path):
    with pytest.raises(CameraError, match="nowhere"):
        Camera().save(tmp_path / "nowhere" / "camera.json")


def saved(**changes):
    fields = {"format": "photonstep-camera", "format_version": 1, "offset_adu": 100.0, "gain_e_per_adu": 0.5}
    return json.dumps({**fields, **changes})


def packed_map(values, shape):
    content = base64.b64encode(zlib.compress(np.asarray(values, "<f4").tobytes())).decode()
    return {"shape": shape, "float32_zlib_base64": content}


HOSTILE = {
    "empty": "",
    "not JSON": "offset=100",
    "a list": "[1, 2]",
    "another format": saved(format="photonstep-bundle"),
    "a newer version": saved(format_version=2),
    "no version": json.dumps({"format": "photonstep-camera"}),
    "unknown field": saved(exposure_s=0.1),
    "field twice": '{"format": "photonstep-camera", "format_version": 1, "offset_adu": 1, "offset_adu": 2}',
    "NaN": saved(offset_adu=float("nan")),
    "infinite exponent": saved().replace("100.0", "1e999"),
    "endless integer": saved().replace("100.0", "9" * 5000),
    "text for a number": saved(offset_adu="100"),
    "null": saved(offset_adu=None),
    "true": saved(gain_e_per_adu=True),
    "negative gain": saved(gain_e_per_adu=-1),
    "list for a number": saved(offset_adu=[1, 2]),
    "source": saved(source="divine"),
    "correlation of text": saved(noise_correlation=["a", "b"]),
    "saturation of text": saved(saturation_adu="x"),
    "interval upside down": saved(gain_interval_e_per_adu=[2, 1]),
    "deep nesting": "[" * 100_000,
    "object for a number": saved(offset_adu={"a": 1}),
    "map without data": saved(offset_adu={"shape": [4, 4]}),
    "map too short": saved(offset_adu=packed_map(np.zeros(15), [4, 4])),
    "map too long": saved(offset_adu=packed_map(np.zeros(17), [4, 4])),
    "map bomb": saved(offset_adu=packed_map(np.zeros(4_000_000), [4, 4])),
    "map of impossible size": saved(offset_adu=packed_map(np.zeros(16), [10**9, 10**9])),
    "map of negative size": saved(offset_adu=packed_map(np.zeros(16), [-4, -4])),
    "map of fractional size": saved(offset_adu=packed_map(np.zeros(16), [4.0, 4.0])),
    "map of one axis": saved(offset_adu=packed_map(np.zeros(16), [16])),
    "map with NaN": saved(offset_adu=packed_map(np.full(16, np.nan), [4, 4])),
    "map not base64": saved(offset_adu={"shape": [4, 4], "float32_zlib_base64": "***"}),
    "map not compressed": saved(offset_adu={"shape": [4, 4], "float32_zlib_base64": "AAAA"}),
    "map of a number": saved(offset_adu={"shape": [4, 4], "float32_zlib_base64": 7}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_camera_file_is_a_camera_error_that_names_it(text, tmp_path):
    path = tmp_path / "from_a_stranger.json"
    path.write_text(text)
    with pytest.raises(CameraError, match="from_a_stranger"):
        Camera.load(path)


def test_a_file_written_as_the_message_says_is_read(tmp_path):
    path = tmp_path / "by_hand.json"
    path.write_text('{"offset_adu": 100, "gain_e_per_adu": 0.46, "readout_noise_e": 1.6}')
    with pytest.raises(CameraError) as refused:
        Camera.load(path)
    example = re.search(r"{.*}", str(refused.value))
    path.write_text(example[0].replace("...", "1.5"))
    expected = Camera(offset_adu=1.5, gain_e_per_adu=1.5, readout_noise_e=1.5)
    assert vars(Camera.load(path)) == vars(expected)


def test_what_is_no_readable_file_is_a_camera_error(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00photons")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "binary.json", tmp_path / "a\0b"):
        with pytest.raises(CameraError, match="cannot read"):
            Camera.load(path)


# --- calibration: photon transfer ---

GAIN, READOUT = 0.46, 2.0


def transfer_stacks(*, gain=GAIN, frames=30, shape=(96, 96), levels=(50, 400), seed=0, offset=100.0, readout=READOUT):
    dark = photograph(np.zeros((frames, *shape)), gain=gain, offset=offset, readout=readout, dtype=np.uint16, seed=seed)
    vignette = 1 - 0.3 * np.linspace(-1, 1, shape[1]) ** 2
    flats = [
        photograph(
            np.broadcast_to(level * vignette, (frames, *shape)),
            gain=gain, offset=offset, readout=readout, dtype=np.uint16, seed=seed + 1 + i,
        )
        for i, level in enumerate(levels)
    ]  # fmt: skip
    return dark, flats


def test_calibration_covers_the_true_gain_with_its_interval():
    cameras = []
    for seed in range(12):
        dark, flats = transfer_stacks(seed=100 * seed, frames=16)
        cameras.append(Camera.calibrate(dark=dark, flats=flats, maps=False))
    covered = [c.gain_interval_e_per_adu[0] <= GAIN <= c.gain_interval_e_per_adu[1] for c in cameras]
    assert sum(covered) >= 9  # 95 % of 12 is 11.4; below 9 the interval would be a lie
    for camera in cameras:
        low, high = camera.gain_interval_e_per_adu
        assert high - low < 0.06 * GAIN
        assert low <= camera.gain_e_per_adu <= high
        assert camera.gain_e_per_adu == pytest.approx(GAIN, rel=0.03)


def test_calibration_finds_offset_and_readout_maps():
    rng = np.random.default_rng(3)
    offset = rng.normal(100, 4, (48, 64))
    readout = np.where(rng.random((48, 64)) < 0.05, 9.0, 2.0)  # an sCMOS chip: a tail of noisy pixels
    dark, flats = transfer_stacks(frames=200, shape=(48, 64), offset=offset, readout=readout)
    camera = Camera.calibrate(dark=dark, flats=flats)
    assert camera.source == "calibrated"
    assert camera.map_shape == (48, 64)
    assert camera.saturation_adu == 65535
    assert np.sqrt(np.mean((camera.offset_adu - offset) ** 2)) < 0.6  # ADU: 200 frames of 4.3 ADU rms, and the tail
    assert np.corrcoef(camera.readout_noise_e.ravel(), readout.ravel())[0, 1] > 0.97
    assert np.median(camera.readout_noise_e[readout == 2]) == pytest.approx(2.0, rel=0.05)
    assert np.median(camera.readout_noise_e[readout == 9]) == pytest.approx(9.0, rel=0.05)
    assert camera.gain_e_per_adu == pytest.approx(GAIN, rel=0.03)


def test_calibration_without_maps_gives_scalars():
    dark, flats = transfer_stacks()
    camera = Camera.calibrate(dark=dark, flats=flats, maps=False)
    assert camera.map_shape is None
    assert camera.offset_adu == pytest.approx(100, abs=0.1)
    assert camera.readout_noise_e == pytest.approx(READOUT, rel=0.03)
    assert camera.noise_correlation == pytest.approx((0, 0), abs=0.02)


def test_calibration_is_not_misled_by_a_lamp_that_drifts():
    dark, _ = transfer_stacks(frames=60)
    drifting = np.linspace(300, 400, 60)[:, None, None] * np.ones((1, 96, 96))
    flat = photograph(drifting, gain=GAIN, offset=100, readout=READOUT, dtype=np.uint16, seed=9)
    assert Camera.calibrate(dark=dark, flats=[flat]).gain_e_per_adu == pytest.approx(GAIN, rel=0.04)


def test_calibration_sees_noise_that_the_readout_shares_between_neighbours():
    kernel = ([1.0], [1.0, 0.5])
    shape = (20, 128, 128)
    dark = photograph(np.zeros(shape), gain=GAIN, offset=100, readout=4, kernel=((1.0,), *kernel), seed=1)
    flat = photograph(np.full(shape, 300.0), gain=GAIN, offset=100, readout=4, kernel=((1.0,), *kernel), seed=2)
    camera = Camera.calibrate(dark=dark, flats=[flat])
    assert camera.noise_correlation == pytest.approx((0, lag_1(kernel[1])), abs=0.02)


def test_a_calibrated_camera_makes_unit_noise():
    dark, flats = transfer_stacks(frames=100)
    camera = Camera.calibrate(dark=dark, flats=flats)
    z = np.stack([camera.stabilise(frame) for frame in flats[1]])
    assert float(z.var(axis=0, dtype=np.float64, ddof=1).mean()) == pytest.approx(1.0, abs=0.03)


def calibration_faults():
    dark, flats = transfer_stacks(frames=4, shape=(32, 32))
    full = np.where(np.random.default_rng(0).random(flats[0].shape) < 0.01, np.uint16(65535), flats[0])
    holes = flats[0].astype(np.float32)
    holes[0, 0, 0] = np.nan
    return {
        "no flats": ({"flats": []}, CameraError, "no flats"),
        "one dark frame": ({"dark": dark[:1]}, CameraError, r"dark has shape \(1, 32, 32\)"),
        "a frame for a stack": ({"flats": [flats[0][0]]}, CameraError, r"flats\[0\] has shape \(32, 32\)"),
        "another region": ({"flats": [flats[0][:, :-1]]}, ShapeError, r"flats\[0\] is \(31, 32\)"),
        "a list": ({"dark": dark.tolist()}, ShapeError, "dark is list"),
        "float64": ({"flats": [flats[0], flats[1].astype(float)]}, ShapeError, r"flats\[1\] is float64"),
        "no light": ({"flats": [dark]}, CameraError, "more light"),
        "saturated": ({"flats": [full]}, CameraError, "saturated"),
        "NaN": ({"flats": [holes]}, CameraError, "not finite"),
        "too small": ({"dark": dark[:, :16, :16], "flats": [flats[0][:, :16, :16]]}, CameraError, r"\(16, 16\)"),
        "no shot noise": ({"flats": [np.full_like(dark, 900)]}, CameraError, "not noisier"),
    }


@pytest.mark.parametrize("fault", calibration_faults())
def test_unusable_calibration_stacks_are_refused(fault):
    changes, error, says = calibration_faults()[fault]
    dark, flats = transfer_stacks(frames=4, shape=(32, 32))
    with pytest.raises(error, match=says):
        Camera.calibrate(**{"dark": dark, "flats": flats, **changes})


def test_the_face_shows_the_camera():
    assert ps.Camera is Camera


def test_a_subtracted_background_is_understood():
    """Counts below 0 after background subtraction: the offset follows them, and no light is cut off."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:192, :192]
    light = 30 * (1 + 0.8 * np.sin(rows / 15) * np.cos(columns / 22))
    frame = rng.poisson(light) + rng.normal(0, 2, light.shape)
    plain, shifted = (Camera.estimate((frame - below).astype(np.float32)) for below in (0, 50))
    assert shifted.offset_adu < 0
    assert shifted.gain_e_per_adu == pytest.approx(plain.gain_e_per_adu, rel=0.02)
    assert np.all(light - 50 > shifted.offset_adu - 2)


@pytest.mark.parametrize("light", [0.3, 1.0])
def test_photon_counting_frames_are_estimated(light):
    frame = np.random.default_rng(4).poisson(light, (256, 256)).astype(np.uint16)
    assert Camera.estimate(frame).gain_e_per_adu > 0

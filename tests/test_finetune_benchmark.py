"""The fine-tuning benchmark lays data out as a user would, and its table says what was measured."""

import numpy as np
import pytest
import tifffile

from benchmarks import finetune
from photonstep.models.recordings import Source, find_scenes


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "paired" / finetune.SET / "train"
    folder.mkdir(parents=True)
    for index in range(12):
        stack = np.random.default_rng(index).integers(0, 255, (2, 3, 64, 64), dtype=np.uint8)
        tifffile.imwrite(folder / f"fov{index:03d}.tif", stack, photometric="minisblack", metadata={"axes": "TCYX"})
    return tmp_path


def test_ten_fields_are_laid_out_as_pairs_or_without_a_trace_of_the_reference(data, tmp_path):
    files = finetune.ten_fields(data)
    assert len(set(files)) == finetune.FIELDS
    paired = find_scenes(Source(path=finetune.lay_out(files, tmp_path / "p", "paired")))
    assert {s.kind for s in paired} == {"paired"}
    assert len(paired) == 3 * finetune.FIELDS
    noisy = find_scenes(Source(path=finetune.lay_out(files, tmp_path / "n", "noisy")))
    assert {s.kind for s in noisy} == {"noisy"}
    assert [p.name for p in (tmp_path / "n").iterdir()] == ["noisy"]
    first = tifffile.imread(tmp_path / "n" / "noisy" / files[0].name)
    np.testing.assert_array_equal(first, tifffile.imread(files[0])[0])


def test_too_few_fields_are_told(data):
    for path in list((data / "paired" / finetune.SET / "train").iterdir())[:5]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="7 files"):
        finetune.ten_fields(data)


def test_the_table_says_gain_and_time():
    row = {"psnr_db": 32.0, "ssim": 0.9}
    tuned = row | {"psnr_db": 32.5, "gain_db": 0.5, "interval_95_db": (0.4, 0.6)}
    run = {"minutes": 2.0, "cpu_minutes": 1.0, "best_step": 50, "steps": 60}
    text = finetune.table(
        {"runs": {"paired": run}, "scores": {"w2s8 test": {"frames": 60, "base": row, "paired": tuned}}}
    )
    assert "| w2s8 test, 60 | paired | 32.50 | 0.900 | +0.50 (+0.40 to +0.60) |" in text
    assert "paired: 2.0 min, 1.0 of processor time, best at step 50 of 60" in text

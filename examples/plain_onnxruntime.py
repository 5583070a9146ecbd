"""Restore a TIFF with nothing but ONNX Runtime, NumPy and tifffile; photonstep need not be installed.

python examples/plain_onnxruntime.py my.photonstep raw.tif restored.tif
"""

import sys
import zipfile

import numpy as np
import onnxruntime
import tifffile

bundle, raw, restored = sys.argv[1:4]
# what your camera's manual or `photonstep calibrate` says
numbers = {"offset_adu": 100.0, "gain_e_per_adu": 0.46, "readout_noise_e": 1.6, "noise_correlation": (0.0, 0.0)}

with zipfile.ZipFile(bundle) as members:
    session = onnxruntime.InferenceSession(members.read("frame_1.onnx"), providers=["CPUExecutionProvider"])
camera = {name: np.array(value, np.float32) for name, value in numbers.items()}
frame = tifffile.imread(raw, key=0).astype(np.uint16, casting="safe")  # 8 or 16 bit; anything else is refused
[image] = session.run(["restored"], {"frame": frame, **camera})
tifffile.imwrite(restored, image)

"""What bioimageio says of a package, as JSON, and what its core makes of a frame. Run by tests/test_bioimageio.py.

    python bioimageio_check.py PACKAGE.zip FRAME.npy RESTORED.npy

Needs bioimageio.core, bioimageio.spec and onnxruntime, and nothing of photonstep.
"""

import json
import sys

import numpy as np
from bioimageio.core import predict, test_model
from bioimageio.spec import InvalidDescr, load_description

package, frame, restored = sys.argv[1:4]
description = load_description(package)
said = {"valid": not isinstance(description, InvalidDescr), "summary": description.validation_summary.format()}
if said["valid"]:
    tested = test_model(description)
    said |= {"status": tested.status, "tested": tested.format()}
    sample = predict(model=description, inputs={"raw": np.load(frame)[None, None]})
    np.save(restored, sample.members["denoised"].data.values[0, 0])
print(json.dumps(said))

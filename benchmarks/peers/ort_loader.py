"""DataLoader workers and ONNX Runtime in batches: the best that a careful user would write."""

import os
import tempfile
import time

import numpy as np
import onnxruntime
import torch
from common import NETWORKS, THREADS, arguments, loader, report, write

paths, out, name = arguments()
with tempfile.TemporaryDirectory() as folder:
    model = os.path.join(folder, "model.onnx")
    torch.onnx.export(
        NETWORKS[name]().eval(),
        (torch.zeros(2, 3, 224, 224),),
        model,
        dynamo=True,
        input_names=["image"],
        dynamic_shapes={"x": {0: torch.export.Dim("n")}},
        external_data=False,
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
first = time.time()
vectors = np.concatenate([session.run(None, {"image": batch.numpy()})[0] for batch in loader(paths, 8)])
write(paths, vectors, out)
report(len(paths), first)

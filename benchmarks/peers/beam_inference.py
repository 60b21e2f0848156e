"""Beam's own RunInference with its PytorchModelHandler."""

import os
import tempfile

import apache_beam as beam
import pyarrow as pa
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from common import FIRST, NETWORKS, arguments, load, report

paths, out, name = arguments()
SCHEMA = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32()))])


def row(result):
    return {"path": result[0], "embedding": result[1].inference.numpy().tolist()}


with tempfile.TemporaryDirectory() as folder:
    weights = os.path.join(folder, "weights.pt")
    torch.save(NETWORKS[name]().state_dict(), weights)
    handler = PytorchModelHandlerTensor(
        state_dict_path=weights,
        model_class=NETWORKS[name],
        model_params={},
        device="CPU",
        min_batch_size=8,
        max_batch_size=64,
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create(paths)
            | beam.Reshuffle()
            | beam.Map(lambda path: (path, load(path)))
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(row)
            | beam.io.WriteToParquet(out, SCHEMA)
        )
report(len(paths), FIRST[0])

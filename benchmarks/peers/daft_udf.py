"""Daft: download and decode as expressions, the network as a class UDF, as in Daft's own image benchmark."""

import time

import daft
import torch
from common import NETWORKS, arguments, report
from daft import col
from torchvision import transforms

paths, out, name = arguments()
PREPARE = transforms.Compose(
    [
        transforms.ToTensor(),
        transforms.Resize(256, antialias=True),
        transforms.CenterCrop(224),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


@daft.udf(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=32, concurrency=1)
class Network:
    def __init__(self):
        self.network = NETWORKS[name]().eval()

    def __call__(self, images):
        with torch.inference_mode():
            batch = torch.stack([torch.as_tensor(image) for image in images.to_pylist()])
            return self.network(batch).tolist()


first = time.time()
frame = daft.from_pydict({"path": paths})
frame = frame.with_column("image", col("path").download().decode_image(mode="RGB"))
square = daft.DataType.tensor(daft.DataType.float32(), shape=(3, 224, 224))
frame = frame.with_column("square", col("image").apply(lambda image: PREPARE(image).numpy(), return_dtype=square))
frame = frame.with_column("embedding", Network(col("square"))).select("path", "embedding")
frame.write_parquet(out)
report(len(paths), first)

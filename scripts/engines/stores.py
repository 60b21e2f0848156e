"""Stores on this machine, each with a bucket named `bucket`, as context managers: what they start they stop."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, urlencode

from scripts.engines import fetch
from scripts.engines.clusters import HOST, free_port, listens, process, wait_for
from scripts.engines.gcs import gcs_front

# Of every Azure emulator, as its documentation has them.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Bucket:
    """An S3 server with one bucket, and the folder that holds its objects. env: what clients need."""

    endpoint: str
    name: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "testkey",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextlib.contextmanager
def s3_server(folder: Path, bucket: str = "bucket", authorization: str = "aws-v2-or-v4") -> Iterator[Bucket]:
    """An S3 server on a local folder. authorization: "none" takes whoever comes."""
    jar, port = fetch.s3proxy_jar(), free_port()
    data = folder / "objects"
    (data / bucket).mkdir(parents=True)
    served = Bucket(f"http://{HOST}:{port}", bucket, data / bucket)
    settings = {
        "s3proxy.authorization": authorization,
        "s3proxy.identity": served.env["AWS_ACCESS_KEY_ID"],
        "s3proxy.credential": served.env["AWS_SECRET_ACCESS_KEY"],
        "s3proxy.endpoint": served.endpoint,
        "jclouds.provider": "filesystem-nio2",
        "jclouds.filesystem.basedir": str(data),
    }
    (folder / "s3proxy.conf").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    command = ["java", "-Xmx512m", "-jar", str(jar), "--properties", str(folder / "s3proxy.conf")]
    with process(command, folder / "s3proxy", {}) as server:
        wait_for(lambda: listens(port), "s3proxy", folder, [server])
        yield served


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[dict[str, str]]:
    """Google Cloud Storage's API before a local folder; what clients need in their environment."""
    with s3_server(folder, authorization="none") as behind, gcs_front(behind.endpoint) as endpoint:
        yield {"STORAGE_EMULATOR_HOST": endpoint}


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, str]]:
    """Azurite, Microsoft's emulator, on a local folder; what clients need in their environment."""
    script, port = fetch.azurite(), free_port()
    command = [
        "node",
        str(script),
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
        "--location",
        str(folder),
    ]
    with process([*command, "--blobHost", HOST, "--blobPort", str(port)], folder / "azurite", {}) as server:
        wait_for(lambda: listens(port), "azurite", folder, [server])
        make_container(f"{HOST}:{port}", "bucket")
        endpoint = f"BlobEndpoint=http://{HOST}:{port}/{ACCOUNT}"
        yield {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName={ACCOUNT};AccountKey={KEY};{endpoint}"}


def make_container(host: str, name: str) -> None:
    """Azure's word for a bucket; obstore makes none."""
    put_to_azure(host, name, {"restype": "container"})


def put_to_azure(host: str, path: str, asked: dict[str, str], data: bytes = b"", **headers: str) -> None:
    """A request as Azure signs it, for what obstore does not ask. headers: of Microsoft's own, with _ for -."""
    said = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    said |= {name.replace("_", "-"): value for name, value in headers.items()}
    place = f"/{ACCOUNT}/{quote(path)}"
    canonical = [*(f"{header}:{said[header]}" for header in sorted(said)), f"/{ACCOUNT}{place}"]
    canonical += [f"{name}:{value}" for name, value in asked.items()]
    signed = "\n".join(["PUT", "", "", str(len(data) or ""), *[""] * 8, *canonical])
    mac = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    with contextlib.closing(http.client.HTTPConnection(host)) as connection:
        said |= {"Authorization": f"SharedKey {ACCOUNT}:{mac}", "Content-Length": str(len(data))}
        connection.request("PUT", f"{place}?{urlencode(asked)}", body=data, headers=said)
        if (answer := connection.getresponse()).status != 201:
            raise RuntimeError(f"azurite put nothing: {answer.status} {answer.read()[:300]!r}")

"""A Beam worker on a node of a cluster: what `--environment_type=PROCESS` starts.

The engine gives the worker's id and where to ask for the rest; that is put into the environment in which Beam's own
worker expects it. Nothing is fetched: sif-batch is installed on the node.
"""

import os
import sys

from sif_batch.errors import SifBatchError
from sif_batch.machine.child import SAFE_PATH, package_path

ASK_S = 60.0


def boot(worker_id: str, endpoint: str) -> None:
    """Become Beam's worker. Raises SifBatchError if the engine at `endpoint` does not answer."""
    os.environ |= worker_environment(worker_id, endpoint) | package_path()
    os.dup2(2, 1)  # nobody may read stdout: a full pipe would block the worker
    os.execv(sys.executable, [sys.executable, *SAFE_PATH, "-m", "apache_beam.runners.worker.sdk_worker_main"])


def worker_environment(worker_id: str, endpoint: str) -> dict[str, str]:
    """What Beam's worker reads from its environment, as the engine answers."""
    os.environ["WORKER_ID"] = worker_id  # Beam reads it as it is imported
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2 as messages
    from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
    from google.protobuf import json_format, text_format

    try:
        with grpc.insecure_channel(endpoint) as channel:
            info = (
                services.ProvisionServiceStub(channel)
                .GetProvisionInfo(
                    messages.GetProvisionInfoRequest(), metadata=(("worker_id", worker_id),), timeout=ASK_S
                )
                .info
            )
    except grpc.RpcError as error:
        raise SifBatchError(f"the engine at {endpoint} does not answer ({error.code().name})") from error
    told = {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    if info.HasField("status_endpoint"):
        told["STATUS_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(info.status_endpoint)
    return told

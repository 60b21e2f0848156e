"""A client for each bucket: its credentials, its patience, and its errors as Python's own.

Credentials, region and endpoint come from where each vendor's own tools look for them; timeouts and retries outlast
throttling.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec

RETRIES: dict[str, Any] = {
    "max_retries": 15,
    "retry_timeout": timedelta(seconds=40),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "15s", "timeout": "15m"}
TEMPORARY_CREDENTIALS = timedelta(minutes=10)  # asked for anew so often; the SDK knows when they end
CAUSE = re.compile(r"status(?: code)?:? (\d{3}[^:,\n]*)|(connection refused|dns error|timed ?out|reset by peer)", re.I)

Options = tuple[dict[str, Any], Callable[[], dict[str, Any]] | None]


@functools.lru_cache(maxsize=64)
def open_bucket(scheme: str, bucket: str) -> Any:
    """The client of a bucket: one for all threads of a process."""
    from obstore.store import from_url

    config, provider = OPTIONS[scheme](fsspec.config.conf.get(scheme, {}))
    endpoint = config.get("endpoint") or config.get("base_url") or ""
    client = TIMEOUTS | {"allow_http": str(endpoint).startswith("http://")}
    url = f"{scheme}://{bucket}"
    return from_url(url, config=config, client_options=client, retry_config=RETRIES, credential_provider=provider)


@contextmanager
def telling(path: str) -> Iterator[None]:
    """The client's exceptions as Python's own, without what could give a credential away."""
    from obstore import exceptions as known

    try:
        yield
    except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
        raise PermissionError(13, f"the store refuses ({reason_of(error)})", path) from None
    except FileNotFoundError as error:
        raise FileNotFoundError(2, reason_of(error), path) from None
    except known.InvalidPathError:  # who lists looks for it
        raise
    except known.PreconditionError:
        raise OSError(5, "it changed while it was read", path) from None
    except known.BaseError as error:
        raise OSError(5, reason_of(error), path) from None


def is_exhausted(error: BaseException) -> bool:
    """Whether the client has repeated the request as often as it may; a body that broke off it does not repeat."""
    return re.search(r"after \d+ retries", str(error)) is not None


def reason_of(error: BaseException) -> str:
    """What a store or its client says, without the request: that holds account names and signatures."""
    text = str(error)
    said = [found[1] for tag in ("Code", "Message") if (found := re.search(rf"<{tag}>([^<]*)</{tag}>", text))]
    if said:
        return ": ".join(said)[:200]
    cause = CAUSE.search(text)
    return (cause[1] or cause[2]).strip()[:200] if cause else "the answer broke off"


def s3_options(given: dict[str, Any]) -> Options:
    """As AWS's own tools: AWS_* variables, profiles, roles. given: fsspec's own settings, for those who have them."""
    from botocore import configprovider
    from botocore.session import Session

    session = Session(profile=given.get("profile"))
    kwargs = given.get("client_kwargs", {})
    endpoint = given.get("endpoint_url") or kwargs.get("endpoint_url")
    if not endpoint:
        endpoint = configprovider.ConfiguredEndpointProvider(session.full_config, _scoped(session), "s3").provide()
    region = kwargs.get("region_name") or session.get_config_variable("region")
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    if given.get("anon") or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        return config | {"skip_signature": True}, None
    if given.get("key"):
        session.set_credentials(given["key"], given["secret"], given.get("token"))
    credentials = session.get_credentials()
    if credentials is None:
        raise PermissionError(
            13,
            "no credentials for S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
            "bucket AWS_SKIP_SIGNATURE=true",
        )

    def provide() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + TEMPORARY_CREDENTIALS if now.token else None,
        }

    return config, provide


def _scoped(session: Any) -> dict[str, Any]:
    from botocore.exceptions import ProfileNotFound

    try:
        return session.get_scoped_config()
    except ProfileNotFound as error:
        raise PermissionError(13, str(error)) from None


def gcs_options(given: dict[str, Any]) -> Options:
    """As Google's own tools: the default credentials of the application; STORAGE_EMULATOR_HOST."""
    endpoint = given.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    if endpoint:
        # An emulator looks at no token; without one obstore would ask a metadata server for it before each write.
        base_url = endpoint if "://" in endpoint else f"http://{endpoint}"
        return {"base_url": base_url}, lambda: {"token": "emulator", "expires_at": None}
    if given.get("token") == "anon":
        return {"skip_signature": True}, None
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    except GoogleAuthError as error:
        raise PermissionError(13, f"no credentials for Google Cloud Storage: {error}"[:300]) from None

    def provide() -> dict[str, Any]:
        credentials.refresh(Request())
        return {"token": credentials.token, "expires_at": credentials.expiry.replace(tzinfo=UTC)}

    return {}, provide


def azure_options(given: dict[str, Any]) -> Options:
    """As Azure's own tools: AZURE_STORAGE_* variables, a connection string, a managed identity."""
    text = given.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    said = dict(item.split("=", 1) for item in text.split(";") if "=" in item)
    names = {"AccountName": "account_name", "AccountKey": "account_key", "BlobEndpoint": "endpoint"}
    config = {ours: said[theirs] for theirs, ours in names.items() if said.get(theirs)}
    return config | {name: given[name] for name in ("account_name", "account_key") if given.get(name)}, None


OPTIONS = {
    "s3": s3_options,
    "s3a": s3_options,
    "gs": gcs_options,
    "gcs": gcs_options,
    "az": azure_options,
    "abfs": azure_options,
    "abfss": azure_options,
}

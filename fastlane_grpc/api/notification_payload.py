"""The body of a webhook: JSON with the job as the contract maps it. The same bytes for each attempt."""

import json

from google.protobuf import json_format

from fastlane_grpc.api import converters
from fastlane_grpc.model import Delivery, NotificationEvent
from fastlane_grpc.text.redaction import SecretNames

# By what has ended.
TYPES = {
    NotificationEvent.RUN_ENDED: "run.ended",
    NotificationEvent.JOB_ENDED: "job.ended",
    NotificationEvent.ATTEMPT_ENDED: "attempt.ended",
}


def payload(delivery: Delivery, *, external_url: str, secret_names: SecretNames) -> bytes:
    """Return the body of a delivery. `external_url`: of the page for people; empty: there is none."""
    job = converters.job(delivery.job, lambda execution: None, secret_names)
    data = {
        "state": f"STATE_{delivery.ended_state.name}",
        "job": json_format.MessageToDict(job, preserving_proto_field_name=True),
        "labels": {name: secret_names.mask(value) for name, value in delivery.labels.items()},
    }
    if external_url:
        data["url"] = f"{external_url}/jobs/{delivery.job.id}"
    body = {
        "type": TYPES[delivery.event],
        "timestamp": delivery.create_time.isoformat().replace("+00:00", "Z"),
        "data": data,
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

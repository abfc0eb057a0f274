"""The result of one attempt to deliver a notification."""

from dataclasses import dataclass

from fastlane_grpc.text.redaction import mask_secrets
from fastlane_grpc.text.sanitize import one_line

_MAX_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of an attempt. `rejected`: the receiver will never accept the notification.

    `retry_seconds`: the receiver asks for no attempt before. `detail` is one printable line without secrets."""

    accepted: bool
    detail: str
    rejected: bool = False
    retry_seconds: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", one_line(mask_secrets(self.detail), _MAX_CHARACTERS))

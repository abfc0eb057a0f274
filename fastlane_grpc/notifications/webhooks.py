"""Webhooks: one signed POST over HTTP, the same for each attempt but for the time."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastlane_grpc.model import Delivery, Webhook
from fastlane_grpc.networks import Networks
from fastlane_grpc.notifications.reply import Reply
from fastlane_grpc.notifications.signing_keys import DEFAULT_NAME, SigningKeys, UnknownKey, key_of, signature

if TYPE_CHECKING:
    from fastlane_grpc.notifications.http_post import HttpPost


class WebhookSender:
    """A sender of webhooks. Lives on the loop; `close` releases its connections and threads."""

    def __init__(
        self,
        networks: Networks,
        keys: SigningKeys,
        *,
        default_timeout: timedelta,
        payload: Callable[[Delivery], bytes],
    ) -> None:
        """`payload` returns the body of a delivery, the same for each attempt."""
        self._networks = networks
        self._keys = keys
        self._default_timeout = default_timeout
        self._payload = payload
        # Made with the first webhook: most servers send none.
        self._http: HttpPost | None = None
        # The first webhooks may come together.
        self._opening = asyncio.Lock()

    async def send(self, delivery: Delivery, attempt: int) -> Reply:
        """Make one attempt to deliver. It ends within the timeout of the webhook."""
        webhook = delivery.notification.target
        assert isinstance(webhook, Webhook), "a mail has another sender"
        body = self._payload(delivery)
        try:
            headers = {**webhook.headers, **self._headers(delivery.id, webhook, body, attempt)}
        except UnknownKey as error:
            return Reply(False, str(error))
        try:
            http = await self._opened()
        except (OSError, ImportError) as error:
            return Reply(False, f"the HTTP client cannot be started: {error}")
        timeout = webhook.timeout or self._default_timeout
        return await http.post(webhook.url, body, headers, timeout_seconds=timeout.total_seconds())

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def _opened(self) -> "HttpPost":
        async with self._opening:
            if self._http is None:
                self._http = await asyncio.to_thread(_new_http_post, self._networks)
            return self._http

    def _headers(self, message_id: str, webhook: Webhook, body: bytes, attempt: int) -> dict[str, str]:
        """Return the headers that no caller sets. UnknownKey."""
        now = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": f"fastlane/{version('fastlane-grpc')}",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "fastlane-attempt": str(attempt),
        }
        if (key := self._key(webhook)) is not None:
            headers["webhook-signature"] = signature(key, message_id, now, body)
        return headers

    def _key(self, webhook: Webhook) -> bytes | None:
        if webhook.secret:
            return key_of(webhook.secret)
        if webhook.secret_name:
            return self._keys.key(webhook.secret_name)
        return self._keys.key(DEFAULT_NAME) if self._keys.has(DEFAULT_NAME) else None


def _new_http_post(networks: Networks) -> "HttpPost":
    # Imported here: the HTTP client takes a third of the time in which a server starts.
    from fastlane_grpc.notifications.http_post import HttpPost

    return HttpPost(networks)

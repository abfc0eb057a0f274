"""Notifications: deliver what the outbox holds, by webhook or mail, until each receiver has accepted it."""

from fastlane_grpc.notifications.log_end import LogEnd
from fastlane_grpc.notifications.mails import MailSender, SmtpServer
from fastlane_grpc.notifications.notifier import Notifier
from fastlane_grpc.notifications.reply import Reply
from fastlane_grpc.notifications.signing_keys import SigningKeys, key_fault
from fastlane_grpc.notifications.webhooks import WebhookSender

__all__ = ["LogEnd", "MailSender", "Notifier", "Reply", "SigningKeys", "SmtpServer", "WebhookSender", "key_fault"]

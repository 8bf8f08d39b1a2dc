"""Ready-made hooks: figures for Prometheus and OpenTelemetry, a word to a command or a URL.

Give them to `BatchRunner(hooks=[...])`. None of them tells a prompt or an answer, and none can delay or fail
a run. What they need beside this package is imported when one is made.
"""

from __future__ import annotations

from ollama_batch.hooks.command import CommandHook
from ollama_batch.hooks.notice import Notice, Occasion
from ollama_batch.hooks.otel import OpenTelemetryHook
from ollama_batch.hooks.prometheus import PrometheusHook
from ollama_batch.hooks.webhook import WebhookHook

__all__ = ["CommandHook", "Notice", "Occasion", "OpenTelemetryHook", "PrometheusHook", "WebhookHook"]

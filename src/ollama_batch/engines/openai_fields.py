"""The body fields that OpenAIEngine passes on, and those it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ollama_batch.engines import fields as f
from ollama_batch.engines.fields import HANDLED_BY_RUN, Complaint, Field, FieldTable

_SENT: Final = "sent as it is"


def check_messages(messages: Any) -> Complaint:
    """Accepts a list of messages with a role; what is in them is the server's to judge."""
    if not f.is_list(messages) or not messages:
        return "must be a list of at least one message"
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return f"[{index}]", "must be an object"
        if not isinstance(message.get("role"), str):
            return f"[{index}].role", "must be text"
        content = message.get("content")
        if content is not None and not isinstance(content, str) and not f.is_list(content):
            return f"[{index}].content", "must be text or a list of parts"
    return None


def _sent(check: f.Check, *names: str, note: str = _SENT) -> list[Field]:
    return [Field(name=name, becomes=note, check=check) for name in names]


def _refused(reason: str, *names: str) -> list[Field]:
    return [Field(name=name, refused=reason) for name in names]


_EXTENSION: Final = _SENT + " (known to llama.cpp or vLLM)"

OPENAI_FIELDS: Final = FieldTable(
    "OpenAIEngine",
    [
        Field(name="model", becomes=HANDLED_BY_RUN + ", sent as `model`", check=f.text),
        Field(name="messages", becomes=_SENT, check=check_messages),
        Field(name="max_tokens", becomes=HANDLED_BY_RUN + ", sent as `max_tokens`", check=f.integer(1)),
        Field(
            name="max_completion_tokens",
            becomes="the same as `max_tokens`; if both are given they must be equal",
            check=f.integer(1),
        ),
        *_sent(f.number(0, 2), "temperature"),
        *_sent(f.number(0, 1), "top_p"),
        *_sent(f.integer(), "seed"),
        *_sent(f.number(-2, 2), "presence_penalty", "frequency_penalty"),
        *_sent(f.stop, "stop"),
        *_sent(f.response_format, "response_format"),
        *_sent(f.tools, "tools"),
        *_sent(f.anything, "tool_choice"),
        *_sent(f.boolean, "parallel_tool_calls", "logprobs", "store"),
        *_sent(f.text, "reasoning_effort", "verbosity", "service_tier", "user", "safety_identifier"),
        *_sent(f.text, "prompt_cache_key", "prompt_cache_retention"),
        *_sent(f.integer(0, 20), "top_logprobs"),
        *_sent(
            f.integer(1, 128),
            "n",
            note=_SENT
            + "; `output` is the first answer, `body` holds all; fewer than asked for fail the row",
        ),
        *_sent(f.mapping, "logit_bias", "audio", "prediction", "web_search_options", "moderation"),
        *_sent(f.mapping, "prompt_cache_options"),
        *_sent(f.anything, "modalities", "functions", "function_call"),
        Field(name="metadata", becomes="carried to the result, not sent", check=f.anything),
        Field(
            name="stream",
            becomes="`false` is what is sent; `true` is refused",
            check=f.only(False, "a batch has no streams; leave it out"),
        ),
        *_sent(
            f.integer(-1), "top_k", "repeat_last_n", "min_tokens", "truncate_prompt_tokens", note=_EXTENSION
        ),
        *_sent(f.number(), "min_p", "typical_p", "repeat_penalty", "repetition_penalty", note=_EXTENSION),
        *_sent(
            f.number(), "length_penalty", "top_n_sigma", "xtc_probability", "xtc_threshold", note=_EXTENSION
        ),
        *_sent(
            f.number(), "dynatemp_range", "dynatemp_exponent", "mirostat_tau", "mirostat_eta", note=_EXTENSION
        ),
        *_sent(f.number(), "dry_multiplier", "dry_base", "dry_allowed_length", note=_EXTENSION),
        *_sent(f.integer(), "dry_penalty_last_n", "mirostat", "priority", "id_slot", note=_EXTENSION),
        *_sent(f.boolean, "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", note=_EXTENSION),
        *_sent(f.boolean, "add_generation_prompt", "continue_final_message", "cache_prompt", note=_EXTENSION),
        *_sent(
            f.mapping, "chat_template_kwargs", "structured_outputs", "mm_processor_kwargs", note=_EXTENSION
        ),
        *_sent(f.anything, "guided_json", "guided_choice", "json_schema", "samplers", note=_EXTENSION),
        *_sent(f.anything, "stop_token_ids", "bad_words", "documents", note=_EXTENSION),
        *_sent(f.text, "grammar", "guided_regex", "guided_grammar", "chat_template", note=_EXTENSION),
        *_sent(f.text, "reasoning_format", note=_EXTENSION),
        *_sent(f.integer(-1), "thinking_budget_tokens", "reasoning_budget", note=_EXTENSION),
        *_refused("a batch has no streams", "stream_options"),
        *_refused("the same as max_tokens: use that", "n_predict", "num_predict"),
        *_refused("use reasoning_effort or chat_template_kwargs", "think", "reasoning"),
        *_refused("the server sets its context length when it starts", "num_ctx"),
        *_refused("only Ollama's native form has it: use OllamaEngine", "options", "keep_alive", "format"),
        *_refused(
            "belongs to the engine, not to a request",
            "base_url",
            "api_key",
            "extra_headers",
            "extra_query",
            "extra_body",
            "timeout",
        ),
    ],
    unknown=(
        "is no field that OpenAIEngine knows: correct its name, or give it to all requests with "
        "OpenAIEngine(extra_body=...)"
    ),
    together=f.token_limits,
)

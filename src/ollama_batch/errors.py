"""Every error this package raises on purpose.

    OllamaBatchError
    ├── ConfigError                     an option is wrong; nothing was started
    │   └── VocabularyMissingError      no vocabulary to count tokens with
    ├── MissingExtraError               an optional dependency is not installed
    ├── InputError                      requests are wrong; names file, line, custom_id, field, rule
    │   └── InputChangedError           the input changed after it was validated
    ├── OutputError                     an output file is not ours to write, or cannot be written
    ├── MemoryUnknownError              a reading of memory failed; says why
    ├── RestartError                    a restart of the engine did not work; says how that ended
    ├── JournalError
    │   ├── JournalLockedError          another runner has this run
    │   ├── JournalMismatchError        what changes answers has changed since the run began
    │   ├── JournalCorruptError         the journal is damaged, or no journal at all
    │   ├── JournalVersionError         written by a newer release
    │   └── DiskFullError               no room for the journal or the output
    ├── EngineError                     one request failed; see `retryable`, `row_caused`, `budget`
    │   ├── EngineUnreachableError      connection refused, name not resolved
    │   ├── EngineConnectionError       connection lost in mid-answer
    │   ├── EngineTimeoutError          no complete answer before the deadline
    │   ├── EngineBusyError             429, 503: the queue is full
    │   ├── EngineLoadingError          the model is being loaded
    │   ├── EngineServerError           5xx
    │   │   ├── EngineCrashedError      the model's process died
    │   │   └── EngineOutOfMemoryError
    │   ├── InvalidReplyError           an answer that is no complete, valid answer
    │   ├── EngineStoppedError          the engine is gone and does not come back by itself (it was closed)
    │   │   └── EngineExitedError       its own process ended; a restart brings it back
    │   ├── EngineAuthError             401, 403
    │   ├── ModelNotFoundError          names the command that gets the model
    │   ├── RequestRejectedError        the row itself is at fault (4xx)
    │   │   ├── ContextTooLargeError    prompt and answer do not fit the context
    │   │   └── UnsupportedParamError   the engine cannot honour a field of the body
    │   └── OutcomeError                a complete answer that is of no use
    │       ├── PromptTruncatedError    the server cut the prompt in silence
    │       ├── OutputTruncatedError    cut off by the token limit
    │       ├── EmptyOutputError        no text and no tool call
    │       │   └── ReasoningOnlyError  reasoning, and nothing after it
    │       ├── OutputRefusedError      the engine's content filter
    │       └── OutputUnparsedError     text that does not fit the response model
    └── RunStoppedError                 the run ended early and can be resumed
        ├── TooManyFailuresError
        ├── DeadlineReachedError
        ├── EngineDownError             the engine did not come back in time
        ├── ModelChangedError           the model's name stands for other weights than when the run began
        ├── MemoryShortError            a guard kept the run from sending for too long
        └── RunCancelledError           stopped by SIGTERM, SIGHUP or `.cancel()`

`RunInterrupted` is Ctrl-C: a `KeyboardInterrupt`, so that `except Exception` does not swallow it.
A failed request is data (`BatchResult.error`); a failed run raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ollama_batch.types import Completion, InvalidRow, RowError

Budget = Literal["transport", "busy", "server", "reply", "timeout", "none"]
"""Which retry budget an error draws from; "none" is never retried."""


class OllamaBatchError(Exception):
    """The root of this package's errors; `report` is the BatchReport so far, if one ended a begun run."""

    report: Any = None

    def __init__(self, message: str = "", *rest: Any) -> None:
        super().__init__(message, *rest)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(OllamaBatchError, ValueError):
    """Raised when an option has a wrong value; the message names option, value and rule."""


class VocabularyMissingError(ConfigError):
    """Raised when no vocabulary was found or could be fetched; the message names the ways to get one."""


class MissingExtraError(OllamaBatchError, ImportError):
    """Raised when a feature needs an optional dependency; the message names the extra to install."""


class InputError(OllamaBatchError):
    """Raised when the input is refused: before anything is sent, or at a bad item behind rows of an iterable.

    `invalid` holds the first rows at fault (100 at most), `count` how many there are in all.
    """

    def __init__(self, message: str, invalid: Sequence[InvalidRow] = (), count: int | None = None) -> None:
        super().__init__(message, invalid, count)
        self.invalid = tuple(invalid)
        self.count = len(self.invalid) if count is None else count

    def __str__(self) -> str:
        more = [f"  ... and {left} more"] if (left := self.count - len(self.invalid)) > 0 else []
        return "\n".join([self.message, *(f"  {row}" for row in self.invalid), *more])


class InputChangedError(InputError):
    """Raised when an input file is not the one that was validated; what is done stays done."""


class OutputError(OllamaBatchError):
    """Raised when an output file exists and is not this run's, or its place cannot be written."""


class MemoryUnknownError(OllamaBatchError):
    """Raised when memory could not be measured; `reason` says why. Unknown is not 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RestartError(OllamaBatchError):
    """Raised by a restart that did not work, in a callable of yours as well.

    `outcome`: "failed", "refused" or "password"; after a refusal it is asked again once the engine answers.
    """

    def __init__(self, message: str, outcome: Literal["failed", "refused", "password"] = "failed") -> None:
        super().__init__(message, outcome)
        self.outcome = outcome


class JournalError(OllamaBatchError):
    """Raised when the journal of a run cannot be used; `path` says which."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class JournalLockedError(JournalError):
    """Raised when another runner, in this or another process, is writing this journal."""


class JournalMismatchError(JournalError):
    """Raised when a run cannot be resumed because something that changes answers has changed.

    `differences` maps each changed setting to its (recorded, present) values.
    """

    def __init__(
        self, message: str, path: str | None = None, differences: dict[str, tuple[Any, Any]] | None = None
    ) -> None:
        super().__init__(message, path)
        self.args = (message, path, differences)
        self.differences = differences or {}


class JournalCorruptError(JournalError):
    """Raised when a journal is damaged or is not a journal."""


class JournalVersionError(JournalError):
    """Raised when a journal was written by a release this one cannot read."""


class DiskFullError(JournalError):
    """Raised when there is no room left to keep results."""


class EngineError(OllamaBatchError):
    """Raised by an engine when a request has no usable answer.

    `retryable`: the same request may succeed later. `row_caused`: the request itself is at fault.
    `budget`: which retry budget an attempt draws from. `code`: the stable name in error files.
    `status` is the HTTP status, `retry_after_s` what the server asked to wait, both None if absent.
    """

    code: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = False
    row_caused: ClassVar[bool] = False
    budget: ClassVar[Budget] = "none"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after_s = status, param, retry_after_s

    def __repr__(self) -> str:
        # The arguments of an OutcomeError hold a whole answer, which belongs in no log.
        return f"{type(self).__name__}({self.message!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))

    def to_row_error(self) -> RowError:
        """This error as the data that a failed row carries."""
        return RowError(self.code, self.message, self.status, self.param, self.row_caused)


def _rebuild(cls: type[EngineError], args: tuple[Any, ...], state: dict[str, Any]) -> EngineError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class EngineUnreachableError(EngineError):
    """Raised when no connection could be made: nothing was sent."""

    code = "engine_unreachable"
    retryable = True


class EngineConnectionError(EngineError):
    """Raised when a connection broke before the answer was complete."""

    code = "connection_lost"
    retryable = True
    budget = "transport"


class EngineTimeoutError(EngineError):
    """Raised when no complete answer arrived before the deadline."""

    code = "request_timeout"
    retryable = True
    budget = "timeout"


class EngineBusyError(EngineError):
    """Raised when the server has no room in its queue."""

    code = "engine_busy"
    retryable = True
    budget = "busy"


class EngineLoadingError(EngineError):
    """Raised when the server is up and its model not yet loaded."""

    code = "engine_loading"
    retryable = True
    budget = "busy"


class EngineServerError(EngineError):
    """Raised when the server failed (5xx)."""

    retryable = True
    budget = "server"


class EngineCrashedError(EngineServerError):
    """Raised when the process that runs the model died."""

    code = "engine_crashed"


class EngineOutOfMemoryError(EngineServerError):
    """Raised when the engine ran out of memory."""

    code = "out_of_memory"


class InvalidReplyError(EngineError):
    """Raised when the server's reply is not a complete, valid answer, whatever its status."""

    code = "invalid_reply"
    retryable = True
    budget = "reply"


class EngineStoppedError(EngineError):
    """Raised when the engine is gone and will not come back by itself."""

    code = "engine_stopped"


class EngineExitedError(EngineStoppedError):
    """Raised when the process of an engine of our own has ended: `restart` brings it back."""

    code = "engine_exited"
    retryable = True


class EngineAuthError(EngineError):
    """Raised when the server refuses the credentials."""

    code = "engine_auth"


class ModelNotFoundError(EngineError):
    """Raised when the server does not have the model; the message says how to get it."""

    code = "model_not_found"


class RequestRejectedError(EngineError):
    """Raised when the server rejects the request itself: never retried unchanged."""

    code = "request_rejected"
    row_caused = True


class ContextTooLargeError(RequestRejectedError):
    """Raised when a prompt (`tokens`) does not fit the room there is for it (`limit`), in tokens."""

    code = "context_length_exceeded"

    def __init__(self, tokens: int | None, limit: int | None, message: str | None = None) -> None:
        default = "the prompt is longer than the context"
        if tokens is not None and limit is not None:
            default = f"the prompt has {tokens:,} tokens, the context has room for {limit:,}"
        super().__init__(message or default, status=400)
        self.args = (tokens, limit, message)
        self.tokens, self.limit = tokens, limit


class UnsupportedParamError(RequestRejectedError):
    """Raised when the engine has no way to honour a field of the request; `param` names it."""

    code = "unsupported_parameter"


class OutcomeError(EngineError):
    """Raised when a complete answer is of no use; `completion` is that answer."""

    row_caused = True

    def __init__(self, message: str, completion: Completion) -> None:
        super().__init__(message, status=200)
        self.args = (message, completion)
        self.completion = completion


class PromptTruncatedError(OutcomeError):
    """Raised when a server reports far fewer prompt tokens than were sent: it answered a cut prompt."""

    code = "prompt_truncated"


class OutputTruncatedError(OutcomeError):
    """Raised when the answer was cut off by its token limit."""

    code = "output_truncated"


class EmptyOutputError(OutcomeError):
    """Raised when the answer has neither text nor a tool call."""

    code = "output_empty"


class ReasoningOnlyError(EmptyOutputError):
    """Raised when the answer has reasoning and nothing after it."""

    code = "output_reasoning_only"


class OutputRefusedError(OutcomeError):
    """Raised when the engine's content filter withheld the answer."""

    code = "output_refused"


class OutputUnparsedError(OutcomeError):
    """Raised when the text of the answer does not fit the response model; the message says in what."""

    code = "output_unparsed"


class RunStoppedError(OllamaBatchError):
    """Raised when a run ended early: everything finished is kept, running it again goes on."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message, report)
        self.report = report


class TooManyFailuresError(RunStoppedError):
    """Raised when `max_failures` was reached, or the run is `hopeless`: its first rows all failed alike."""

    hopeless = False


class DeadlineReachedError(RunStoppedError):
    """Raised when the run's `deadline` passed."""


class EngineDownError(RunStoppedError):
    """Raised when the engine is gone, or did not come back in time."""


class ModelChangedError(RunStoppedError):
    """Raised when a model was exchanged under the run; the message has both digests."""


class MemoryShortError(RunStoppedError):
    """Raised when a guard has kept the run from sending for too long, as memory was short."""


class RunCancelledError(RunStoppedError):
    """Raised when the run was asked to stop."""


class RunInterrupted(KeyboardInterrupt):
    """Raised by a run that Ctrl-C stopped; `report` is the BatchReport so far. Running it again goes on."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.report = report

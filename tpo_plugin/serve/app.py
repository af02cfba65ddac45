"""The server: routes, and the way of a request from its body to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tpo_plugin.asking import Answer
from tpo_plugin.data import Sample
from tpo_plugin.errors import HostError, TPOError, did_you_mean, shown
from tpo_plugin.serve.answer import Completion, event
from tpo_plugin.serve.batching import Batcher, Question
from tpo_plugin.serve.errors import Refused, error_body, without_paths
from tpo_plugin.serve.limits import Limits
from tpo_plugin.serve.media import MediaReader
from tpo_plugin.serve.metrics import CONTENT_TYPE, Metrics
from tpo_plugin.serve.request import ChatRequest, parse_request
from tpo_plugin.training.config import DataConfig

logger = logging.getLogger(__name__)


class Server:
    """One model, answering over HTTP as `name`; see `application`."""

    def __init__(
        self,
        model: Any,
        reading: DataConfig,
        name: str,
        limits: Limits,
        *,
        media_root: Path | None = None,
        api_key: str | None = None,
    ) -> None:
        self.model, self.limits, self.api_key = model, limits, api_key
        self.card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "tpo-plugin",
        }
        self.metrics, self.num_requests = Metrics(), 0
        self.read_media = MediaReader(model.tpo, reading, limits, media_root and media_root.resolve())

    @contextlib.asynccontextmanager
    async def alive(self, app: Any) -> AsyncIterator[None]:
        """While it lasts, questions are answered; uploads lie in a folder that is removed."""
        with tempfile.TemporaryDirectory(prefix="tpo-serve-") as folder:
            self.folder = Path(folder).resolve()
            self.batcher = Batcher(self.model, self.limits, self.metrics.batch.observe)
            self.readers = ThreadPoolExecutor(self.limits.threads, thread_name_prefix="reads media")
            try:
                yield
            finally:
                self.readers.shutdown()
                self.batcher.close()

    # -- routes --------------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Whether it serves."""
        return JSONResponse({"status": "ok", "model": self.card["id"], "requests": self.num_requests})

    async def show_metrics(self, request: Request) -> Response:
        """Counters, for Prometheus."""
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The one model, or the list of it."""
        self._check_key(request)
        asked = request.path_params.get("name")
        if asked is None:
            return JSONResponse({"object": "list", "data": [self.card]})
        self._check_model(asked)
        return JSONResponse(self.card)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self.metrics.seconds.observe(time.monotonic() - began))
            try:
                self._check_key(request)
                stack.enter_context(self._room())
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                response = await self._complete(request, folder, began + self.limits.timeout_s, stack.pop_all)
            except Exception as error:
                self.metrics.requests.labels(error.status if isinstance(error, Refused) else 500).inc()
                raise
            self.metrics.requests.labels(response.status_code).inc()
            return response

    def error(self, refused: Refused) -> dict[str, Any]:
        """The body of a response that is an error, without a path of this machine."""
        message = without_paths(str(refused), self.folder, self.read_media.media_root)
        return error_body(refused.status, message, refused.code)

    # -- the way of a chat completion ----------------------------------------------------------------------------------

    async def _complete(
        self, http: Request, folder: Path, deadline: float, keep: Callable[[], contextlib.ExitStack]
    ) -> Response:
        """The response. A stream outlives this call, and so it takes over what is to be cleaned up, by `keep`."""
        body = await _within(self._body(http), deadline, "the body did not arrive")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        reading = loop.run_in_executor(self.readers, self._read, body, folder)
        request, sample = await _within(reading, deadline, "the media were not read")

        def tell(text: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # of a loop that was closed
                loop.call_soon_threadsafe(pieces.put_nowait, text)

        longest = self.limits.max_new_tokens if request.longest is None else request.longest
        question = Question(sample, request.route, longest, tell if request.stream else None)
        completion = Completion(self.model.tpo, self.card["id"], sample)
        question.result.add_done_callback(lambda _: tell(None))
        self.batcher.submit(question)
        try:
            first = await _within(_unless_gone(http, pieces.get()), deadline, "there was no answer")
            if first is None:  # nothing was streamed before the end, so that an error may still be a status
                answer = self._answered(question)
            if not request.stream:
                return await asyncio.to_thread(lambda: JSONResponse(completion.whole(answer)))
        except BaseException:
            question.abandoned = True
            raise
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        events = self._events(question, completion, first, pieces, deadline, with_usage)
        return _Stream(events, question, keep())

    async def _events(
        self,
        question: Question,
        completion: Completion,
        text: str | None,
        pieces: asyncio.Queue[str | None],
        deadline: float,
        with_usage: bool,
    ) -> AsyncIterator[bytes]:
        yield completion.begin(with_usage)
        try:
            while text is not None:
                yield completion.piece(text, with_usage)
                text = await _within(pieces.get(), deadline, "the answer did not end")
            for chunk in await asyncio.to_thread(completion.end, self._answered(question), with_usage):
                yield chunk
        except Exception as error:
            yield event(self.error(error if isinstance(error, Refused) else _as_refused(error)))

    async def _body(self, http: Request) -> bytes:
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another site may send
            raise Refused(415, f"the body is of type {kind[:80]!r}; expected application/json")
        most = self.limits.max_body_mb * 2**20
        body = bytearray()
        try:
            async for chunk in http.stream():
                body += chunk
                if len(body) > most:
                    raise Refused(413, f"the body is larger than {self.limits.max_body_mb} MiB; send smaller media")
        except ClientDisconnect as error:
            raise Refused(499, "the client closed the connection") from error
        return bytes(body)

    def _read(self, body: bytes, folder: Path) -> tuple[ChatRequest, Sample]:
        request = parse_request(body)
        self._check_model(request.model)
        if request.route is not None and request.route not in self.model.tpo.heads:
            raise Refused(
                400,
                f"route is {shown(request.route)}, no applied head{did_you_mean(request.route, self.model.tpo.heads)}",
            )
        if request.longest is not None and request.longest > self.limits.max_new_tokens:
            raise Refused(400, f"max_tokens is {request.longest}; expected at most {self.limits.max_new_tokens}")
        return request, self.read_media(request, folder)

    def _answered(self, question: Question) -> Answer:
        """The answer, once it is there. Raises `Refused` where the model refuses the question."""
        try:
            answer = question.result.result(timeout=0)
        except Exception as error:
            raise _as_refused(error) from error
        self.metrics.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.metrics.tokens.labels("answer").inc(len(answer.token_ids))
        for found in answer.predictions:
            self.metrics.predictions.labels(found.head).inc()
        return answer

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """A place for one more request. Raises `Refused` where all are taken."""
        if self.num_requests >= self.limits.max_requests:
            raise Refused(429, f"{self.num_requests} requests are in progress, and no more are taken; try again later")
        self.num_requests += 1
        self.metrics.running.inc()
        try:
            yield
        finally:
            self.num_requests -= 1
            self.metrics.running.dec()

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self.api_key is None:
            return
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self.api_key.encode()):
            raise Refused(
                401,
                "the API key is missing or wrong; expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _check_model(self, name: str) -> None:
        if name != self.card["id"]:
            raise Refused(
                404, f"there is no model {shown(name)}; this server has {self.card['id']!r}", code="model_not_found"
            )


def application(server: Server) -> Starlette:
    """The ASGI application."""
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.models),
        Route("/health", server.health),
        Route("/metrics", server.show_metrics),
    ]

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse(server.error(error), error.status, error.headers)

    handlers: dict[Any, Any] = {HTTPException: _unknown, Refused: refused, Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=server.alive)


class _Stream(StreamingResponse):
    """Server-sent events of a question; cleans up however they end."""

    def __init__(self, events: AsyncIterator[bytes], question: Question, stack: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.question, self.stack = question, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.stack:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self.question.abandoned = True


async def _within(work: Any, deadline: float, what: str) -> Any:
    """Its result. Raises `Refused` where it takes until after the deadline."""
    try:
        return await asyncio.wait_for(work, deadline - time.monotonic())
    except asyncio.TimeoutError as error:
        raise Refused(504, f"{what} within the time limit of this server; send less, or try again later") from error


async def _unless_gone(http: Request, work: Any) -> Any:
    """Its result. Raises `Refused`, which nobody reads, where the client goes away before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(http.receive())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _as_refused(error: Exception) -> Refused:
    """What the model raised: a question that it cannot take is the client's, all else the server's."""
    if isinstance(error, TPOError) and not isinstance(error, HostError):
        return Refused(400, str(error))
    logger.error("a question failed", exc_info=error)
    return Refused(500, f"the model failed on this question ({type(error).__name__}); the server's log says more")


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        f"{request.method} {request.url.path}: {error.detail}; expected POST /v1/chat/completions, GET /v1/models, "
    )
    return JSONResponse(
        error_body(error.status_code, message + "/health or /metrics"), error.status_code, error.headers
    )


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(500, "the server failed; its log says more"), 500)

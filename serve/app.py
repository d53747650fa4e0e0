"""The application: a model's front, its endpoints, and the worker behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from serve.bodies import ChatRequest, CompletionRequest, TokenizeRequest
from serve.chat import Reader
from serve.errors import ApiError
from serve.gate import Gate
from serve.metrics import Metrics
from serve.routes import make_router
from serve.search_field import Offer
from serve.settings import Network, Settings
from serve.state import State
from serve.supervisor import Supervisor
from serve.template import ChatTemplate, read_template
from serve.tokenizer import TextTokenizer

WEB = Path(__file__).parent / "web"
_BELOW = ("/chat/completions", "/completions", "/models")
"""Where clients ask whose base_url lacks the /v1."""
_BODIES = (ChatRequest, CompletionRequest, TokenizeRequest)


def create_app(settings: Settings, network: Network, names: Sequence[str]) -> Gate:
    """The ASGI application of one model. Its worker, `state.supervisor`, is started and ended by the caller.

    `names`: what a request may call the model, the proper name first. Raises ValueError or FileNotFoundError for a
    model whose tokenizer or chat template cannot be read.
    """
    supervisor, metrics = Supervisor(settings, network), Metrics()
    state = State(supervisor, load_reader(settings), metrics, list(names))
    app = FastAPI(title="acorn", docs_url=None, redoc_url=None)
    app.include_router(make_router(state))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    if WEB.is_dir():
        app.mount("/", StaticFiles(directory=WEB, html=True))
    return Gate(app, network, state)


def load_reader(settings: Settings) -> Reader:
    """Tokenizer and chat template of a model folder or a GGUF file, and whether it can search."""
    model = settings.model
    if model.suffix == ".gguf":
        from serve.gguf import read_gguf

        tokenizer, source = read_gguf(model)
    else:
        tokenizer, source = TextTokenizer.from_folder(model), read_template(model)
    offer = None if settings.engine == "vllm" else Offer(settings.search_budget, settings.verifier is not None)
    return Reader(tokenizer, ChatTemplate(source, tokenizer.names) if source else None, offer)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    hint = f"; the API begins with /v1: ask /v1{path}" if path in _BELOW else ""
    answer = ApiError(error.status_code, f"{request.method} {path}: {error.detail}{hint}").response()
    answer.headers.update(error.headers or {})
    return answer


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that FastAPI does not read itself."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version="1", routes=app.routes)
        _, bodies = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
        )
        document["components"]["schemas"] |= bodies["$defs"]
        app.openapi_schema = document
    return app.openapi_schema

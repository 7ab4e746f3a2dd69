"""A fake engine for what is no conversation: rerank, score, recordings, and tasks of any name, in JSON and in forms."""

from __future__ import annotations

import email
import hashlib
from email.message import Message
from typing import Any, ClassVar, cast

from firstkit.testing.fake_answer import error, prompt_tokens
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection, Request

AUDIO = "/v1/audio/"
TASKS = "/v1/tasks/"


class TaskEngine(QuickEngine):
    """Answers them at once, and says in each answer what it was sent. Of recordings and tasks it reports no usage.

    A task that is called ``broken`` fails, one called ``empty`` answers with nothing.
    """

    paths: ClassVar[tuple[str, ...]] = (
        *QuickEngine.paths,
        "/v1/rerank",
        "/v1/score",
        *(AUDIO + name for name in ("transcriptions", "translations")),
        *(TASKS + name for name in ("echo", "broken", "empty")),
    )

    async def reply_to(self, path: str, request: Request, connection: Connection) -> None:
        fields = form_fields(request) or request.json()
        if path == "/v1/rerank":
            await self.rerank(fields, connection)
        elif path == "/v1/score":
            await self.score(fields, connection)
        elif path.startswith((AUDIO, TASKS)):
            await self.task(path, fields, request, connection)
        else:
            await super().reply_to(path, request, connection)

    async def rerank(self, body: dict[str, Any], connection: Connection) -> None:
        documents = body.get("documents") or []
        results = [
            {"index": i, "document": {"text": text}, "relevance_score": 1 / (1 + i)} for i, text in enumerate(documents)
        ]
        usage = self._read(body.get("query"), documents)
        await connection.answer(200, {"id": "r", "model": body.get("model"), "results": results, "usage": usage})

    async def score(self, body: dict[str, Any], connection: Connection) -> None:
        texts = body.get("text_2") or []
        data = [{"index": i, "object": "score", "score": 0.5} for i in range(len(texts))]
        usage = self._read(body.get("text_1"), texts)
        answer = {"id": "s", "object": "list", "model": body.get("model"), "data": data, "usage": usage}
        await connection.answer(200, answer)

    def _read(self, *texts: Any) -> dict[str, int]:
        count = sum(prompt_tokens(text) for text in texts)
        return {"prompt_tokens": count, "total_tokens": count}

    async def task(self, path: str, fields: dict[str, Any], request: Request, connection: Connection) -> None:
        name = path.rpartition("/")[2]
        if name == "broken":
            await connection.answer(500, error("broken"))
        elif name == "empty":
            await connection.head(200, "text/plain", 0)
        elif fields.get("response_format") in ("text", "srt"):
            said = b"1\n00:00:00,000 --> 00:00:01,000\nHello {there}\n"
            await connection.head(200, "text/plain; charset=utf-8", len(said))
            await connection.raw(said)
        else:
            await connection.answer(200, {"text": "hello there", "task": name, "got": fields, **seen(request)})


def seen(request: Request) -> dict[str, Any]:
    """What came, so that somebody can compare it with what was sent."""
    return {"content_type": request.headers.get("content-type"), "sha256": hashlib.sha256(request.body).hexdigest()}


def form_fields(request: Request) -> dict[str, Any]:
    """The fields of a form, read by the parser of Python's own library; of a file its digest. Empty: it is none."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return {}
    whole = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode("latin-1") + request.body)
    found: dict[str, Any] = {}
    for part in cast(list[Message], whole.get_payload()):
        name = part.get_param("name", header="content-disposition")
        content = cast(bytes, part.get_payload(decode=True))
        is_file = part.get_filename() is not None
        found[str(name)] = hashlib.sha256(content).hexdigest() if is_file else content.decode()
    return found

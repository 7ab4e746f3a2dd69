"""What it costs to tell chunks of a chat engine in another protocol: CPU time per chunk, the best of several rounds.

python bench/translation.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from figures import keep_reported, report
from firstkit.engines.answer import AnswerMeter
from firstkit.gateway.answering import WholeEvents
from firstkit.links.messages import Open, Outcome, Tail, Usage
from firstkit.translation import messages, responses
from firstkit.translation.chat import Translator
from firstkit.translation.messages_answer import MessageAnswer
from firstkit.translation.responses_answer import ResponseAnswer, described

ROUNDS = 15
CHUNKS = 500
LIMIT_US = 25.0
TAIL = Tail(Outcome.COMPLETE, Usage(123, CHUNKS))
HEAD: dict[str, Any] = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1790000000}
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}}}
TOOLS = [{"type": "function", "name": f"tool_{i}", "description": "x" * 400, "parameters": SCHEMA} for i in range(20)]
TURNS = 100


def cpu_us(work: Callable[[], object], per: int) -> float:
    """CPU microseconds of one of the ``per`` things that ``work()`` does, the best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        best = min(best, (time.process_time() - started) / per)
    return best * 1e6


def chunk(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    data = {**HEAD, "model": "meta-llama/Llama-3.3-70B-Instruct", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":")).encode()


def texts() -> list[bytes]:
    return [chunk(content=f" token{i}") for i in range(CHUNKS)]


def calls() -> list[bytes]:
    first = {"index": 0, "id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": f" {i}"}} for i in range(CHUNKS - 1)]
    return [chunk(tool_calls=[piece]) for piece in (first, *pieces)]


def with_logprobs() -> list[bytes]:
    said = []
    for i in range(CHUNKS):
        token = {"token": f" token{i}", "logprob": -0.25, "bytes": list(b" token")}
        data = json.loads(chunk(content=token["token"])[6:])
        data["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token] * 5}]}
        said.append(b"data: %b\n\n" % json.dumps(data, separators=(",", ":")).encode())
    return said


def response_answer() -> Translator:
    body = {"model": msgspec.Raw(b'"m"'), "input": msgspec.Raw(b'"hi"')}
    return ResponseAnswer("m", described(body))


def message_answer() -> Translator:
    return MessageAnswer("m")


class Client:
    """Frames everything and keeps nothing."""

    def __init__(self) -> None:
        self.events = 0

    def write(self, data: bytes) -> bytes:
        self.events += data.count(b"\n\n")
        return b"%x\r\n%b\r\n" % (len(data), data)


def told(answer: Callable[[], Translator], pieces: list[bytes]) -> None:
    """One stream as the gateway tells it."""
    translator, client = WholeEvents(answer()), Client()
    for piece in pieces:
        if said := translator.events(piece):
            client.write(said)
    client.write(translator.last(TAIL))


def passed(pieces: list[bytes]) -> None:
    """The same stream as the gateway passes it on."""
    client = Client()
    for piece in pieces:
        client.write(piece)


def measured(pieces: list[bytes]) -> None:
    """The same stream as a pilot, or the gateway for an external service, reads it: what every chunk costs anyhow."""
    meter = AnswerMeter(Open("rep", "POST", "/v1/chat/completions", 100, stream=True), 0.0)
    meter.head(200, "text/event-stream")
    for piece in pieces:
        meter.feed(piece, 0.0)


def streams() -> None:
    for what, pieces in (("text", texts()), ("a tool call", calls()), ("logprobs, 5 each", with_logprobs())):
        usual = cpu_us(lambda pieces=pieces: measured(pieces), CHUNKS)  # type: ignore[misc]
        plain = cpu_us(lambda pieces=pieces: passed(pieces), CHUNKS)  # type: ignore[misc]
        for protocol, answer in (("Responses", response_answer), ("Messages", message_answer)):
            spent = cpu_us(lambda pieces=pieces, answer=answer: told(answer, pieces), CHUNKS)  # type: ignore[misc]
            report(f"{protocol}: a chunk of {what}", spent, "us", LIMIT_US)
            ratio = f"{spent / usual:.1f} x reading it at a pilot, {spent / plain:.0f} x passing it on"
            print(f"{'':44} {ratio} ({usual:.2f}, {plain:.2f} us)", flush=True)


def requests() -> None:
    """A request of an agent in the middle of a long task: 20 tools, 100 turns, some 200 kB."""
    items: list[Any] = []
    said: list[Any] = []
    for i in range(TURNS):
        items += [
            {"type": "function_call", "call_id": f"c{i}", "name": "tool_1", "arguments": '{"path":"a"}'},
            {"type": "function_call_output", "call_id": f"c{i}", "output": "x" * 2000},
        ]
        use = {"type": "tool_use", "id": f"c{i}", "name": "tool_1", "input": {"path": "a"}}
        result = {"type": "tool_result", "tool_use_id": f"c{i}", "content": [{"type": "text", "text": "x" * 2000}]}
        said += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    own = [{"name": tool["name"], "description": tool["description"], "input_schema": SCHEMA} for tool in TOOLS]
    first: dict[str, Any] = {"model": "m", "stream": True}
    response = raw({**first, "instructions": "x" * 10_000, "input": items, "tools": TOOLS, "tool_choice": "auto"})
    message = raw({**first, "system": "x" * 10_000, "messages": said, "tools": own, "max_tokens": 9})
    report("Responses: a request of 200 kB", cpu_us(lambda: responses.to_chat(response), 1), "us", 2000)
    report("Messages: a request of 200 kB", cpu_us(lambda: messages.to_chat(message), 1), "us", 2000)


def raw(fields: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in fields.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the table, dated, in results/")
    args = parser.parse_args()
    streams()
    requests()
    if args.keep:
        print(f"\nkept in {keep_reported('translation')}")


if __name__ == "__main__":
    main()

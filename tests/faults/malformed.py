"""Requests at the edge of HTTP and beyond it, as bytes, each with what may become of it.

``@KEY@`` in the bytes stands for a key of the gateway. A case says by which statuses it may be answered and whether the
connection may live on: what is refused because its bounds are in doubt must be the last thing that is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

BODY = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "odd"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1"
GET = b"GET /health HTTP/1.1"
HOST = b"host: x\r\n"
AUTH = b"authorization: Bearer @KEY@\r\n"
JSON = b"content-type: application/json\r\n"
MIB = 1024**2


@dataclass(frozen=True)
class Case:
    """``stays``: the connection may be used again (it need not be). If not, nothing behind the request is read."""

    name: str
    data: bytes
    statuses: frozenset[int]
    stays: bool = False

    @property
    def is_head(self) -> bool:
        return self.data.startswith(b"HEAD ")

    def bytes_for(self, key: str) -> bytes:
        return self.data.replace(b"@KEY@", key.encode())


CASES: list[Case] = []


def case(name: str, data: bytes, *statuses: int, stays: bool = False) -> None:
    CASES.append(Case(name, data, frozenset(statuses), stays))


def post(
    *lines: bytes, start: bytes = POST, host: bytes = HOST, auth: bytes = AUTH, kind: bytes = JSON, body: bytes = BODY
) -> bytes:
    """A request with a body and its length, good but for what is given."""
    return bare(*lines, b"content-length: %d" % len(body), start=start, host=host, auth=auth, kind=kind) + body


def bare(*lines: bytes, start: bytes = POST, host: bytes = HOST, auth: bytes = AUTH, kind: bytes = JSON) -> bytes:
    """The head of a request, without length and body."""
    return start + b"\r\n" + host + auth + kind + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def get(*lines: bytes, start: bytes = GET, host: bytes = HOST) -> bytes:
    """A request for a page that is open to all, good but for what is given."""
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunked(*pieces: bytes, lines: Iterable[bytes] = (b"transfer-encoding: chunked",), start: bytes = POST) -> bytes:
    """A request whose body is ``pieces`` as they are."""
    return bare(*lines, start=start) + b"".join(pieces)


def chunk(data: bytes, size: bytes | None = None, end: bytes = b"\r\n") -> bytes:
    return (b"%x" % len(data) if size is None else size) + b"\r\n" + data + end


WHOLE = chunk(BODY)
LAST = b"0\r\n\r\n"
SIZE = b"%x" % len(BODY)


# -- the request line --------------------------------------------------------------------------------------------------

case("an empty line first", b"\r\n" + get(), 200, 400, stays=True)
case("five empty lines first", b"\r\n" * 5 + get(), 200, 400, stays=True)
case("a bare LF first", b"\n" + get(), 200, 400, stays=True)
case("spaces first", b"   " + get(), 400)
case("a NUL first", b"\0" + get(), 400)
case("HTTP 0.9", b"GET /health\r\n\r\n", 400, 505)
case("a method alone", b"GET\r\n\r\n", 400)
case("no path", b"GET HTTP/1.1\r\nhost: x\r\n\r\n", 400)
case("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n", 400)
case("an SSH banner", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", 400)
case("a proxy's PROXY line", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + get(), 400)
case("no words", b"\xff\xfe\xfd\r\n\r\n", 400)
case("a method in lower case", get(start=b"get /health HTTP/1.1"), 400, 405, 501)
case("a method in mixed case", post(start=b"Post /v1/chat/completions HTTP/1.1"), 400, 405, 501)
case("an unknown method", get(start=b"FOO /health HTTP/1.1"), 400, 405, 501)
case("a long method", get(start=b"A" * 100 + b" /health HTTP/1.1"), 400, 405, 501)
case("a method with a colon", get(start=b"GE:T /health HTTP/1.1"), 400)
case("a method with a NUL", get(start=b"GE\0T /health HTTP/1.1"), 400)
case("tabs between", get(start=b"GET\t/health\tHTTP/1.1"), 400)
case("two spaces before the path", get(start=b"GET  /health HTTP/1.1"), 200, 400, stays=True)
case("two spaces before the version", get(start=b"GET /health  HTTP/1.1"), 200, 400, stays=True)
case("a space behind the version", get(start=b"GET /health HTTP/1.1 "), 400)
case("a word behind the version", get(start=b"GET /health HTTP/1.1 x"), 400)
case("a space in the path", get(start=b"GET /hea lth HTTP/1.1"), 400)
case("a path without a slash", get(start=b"GET health HTTP/1.1"), 400)
case("a NUL in the path", get(start=b"GET /he\0alth HTTP/1.1"), 400)
case("a control in the path", get(start=b"GET /he\x01alth HTTP/1.1"), 400)
case("DEL in the path", get(start=b"GET /he\x7falth HTTP/1.1"), 400)
case("a CR in the path", get(start=b"GET /he\ralth HTTP/1.1"), 400)
case("bytes beyond ASCII in the path", bare(start=b"GET /h\xc3\xa4lth HTTP/1.1"), 400, 404, stays=True)
case("half a percent escape", bare(start=b"GET /health%4 HTTP/1.1"), 400, 404, stays=True)
case("a wrong percent escape", bare(start=b"GET /%zzhealth HTTP/1.1"), 400, 404, stays=True)
case("an escaped NUL", bare(start=b"GET /health%00 HTTP/1.1"), 400, 404, stays=True)
case("escaped bytes that are no UTF-8", bare(start=b"GET /%ff%fe HTTP/1.1"), 400, 404, stays=True)
case("an escaped line end", bare(start=b"GET /health%0d%0ax:%20y HTTP/1.1"), 400, 404, stays=True)
case("a fragment", bare(start=b"GET /health#x HTTP/1.1"), 200, 400, 404, stays=True)
case("a path of 30 KiB", bare(start=b"GET /" + b"a" * 30_000 + b" HTTP/1.1"), 404, 431, stays=True)
case("a path of 64 KiB", bare(start=b"GET /" + b"a" * 65_536 + b" HTTP/1.1"), 431)
case("a path of 40 KiB", bare(start=b"GET /" + b"a" * 40_000 + b" HTTP/1.1"), 431)
case("a query of 40 KiB", post(start=POST[:-9] + b"?" + b"a" * 40_000 + b" HTTP/1.1"), 431)
case("a query of 64 KiB", post(start=POST[:-9] + b"?" + b"a" * 65_536 + b" HTTP/1.1"), 431)
case("a request line without end", b"GET /" + b"a" * 300_000, 431)
case("a method without end", b"A" * 300_000, 400, 431)

# -- targets -----------------------------------------------------------------------------------------------------------

_HOT = {
    "a hot route, absolute": (b"http://x/v1/chat/completions", {200, 400}),
    "absolute, another host": (b"http://y/v1/chat/completions", {200, 400}),
    "absolute, with a user": (b"http://u:p@x/v1/chat/completions", {200, 400}),
    "absolute, a port too large": (b"http://x:99999/v1/chat/completions", {200, 400}),
    "absolute, another scheme": (b"gopher://x/v1/chat/completions", {200, 400}),
    "absolute, no host": (b"http:///v1/chat/completions", {400, 404}),
    "absolute, no path": (b"http://x", {400, 404, 405}),
    "a host and a port": (b"x:80", {400, 404}),
    "an escaped letter": (b"/v1/%63hat/completions", {200, 400, 404}),
    "an escaped slash": (b"/v1/chat%2fcompletions", {200, 400, 404}),
    "an escaped query mark": (b"/v1/chat/completions%3fx=y", {400, 404}),
    "two slashes first": (b"//v1/chat/completions", {400, 404}),
    "two slashes between": (b"/v1//chat/completions", {400, 404}),
    "a slash at the end": (b"/v1/chat/completions/", {400, 404}),
    "a query": (b"/v1/chat/completions?x=y", {200}),
    "an empty query": (b"/v1/chat/completions?", {200}),
    "two query marks": (b"/v1/chat/completions??x=/../y", {200}),
    "a parameter": (b"/v1/chat/completions;x=y", {400, 404}),
    "dots": (b"/v1/../v1/chat/completions", {400, 404}),
    "one dot": (b"/v1/./chat/completions", {400, 404}),
    "escaped dots": (b"/v1/%2e%2e/v1/chat/completions", {400, 404}),
    "capitals": (b"/V1/Chat/Completions", {400, 404}),
    "backslashes": (b"/v1\\chat\\completions", {400, 404}),
    "a space at the end, escaped": (b"/v1/chat/completions%20", {400, 404}),
    "the route twice": (b"/v1/chat/completions/v1/chat/completions", {400, 404}),
}
for _name, (_target, _statuses) in _HOT.items():
    case(_name, post(start=b"POST " + _target + b" HTTP/1.1"), *_statuses, stays=True)
    case(f"{_name}, no key", post(start=b"POST " + _target + b" HTTP/1.1", auth=b""), 400, 401, stays=True)
case("GET of a hot route", bare(start=b"GET /v1/chat/completions HTTP/1.1"), 405, stays=True)
case("PUT of a hot route", post(start=b"PUT /v1/chat/completions HTTP/1.1"), 405, stays=True)
case("HEAD of a hot route", bare(start=b"HEAD /v1/chat/completions HTTP/1.1"), 405, stays=True)
case("HEAD of a page", get(start=b"HEAD /health HTTP/1.1"), 200, 405, stays=True)
case("OPTIONS of all", bare(start=b"OPTIONS * HTTP/1.1"), 200, 204, 400, 404, 405, stays=True)
case("OPTIONS of a hot route", bare(start=b"OPTIONS /v1/chat/completions HTTP/1.1"), 405, stays=True)
case("GET of all", bare(start=b"GET * HTTP/1.1"), 400, 404, stays=True)
case("CONNECT to a host", bare(start=b"CONNECT x:443 HTTP/1.1"), 400, 404, 405, 501)
case("CONNECT to a path", bare(start=b"CONNECT /v1/chat/completions HTTP/1.1"), 400, 405, 501)
case("CONNECT with a body", post(start=b"CONNECT x:443 HTTP/1.1", body=get()), 400, 404, 405, 501)
case("TRACE", bare(start=b"TRACE /health HTTP/1.1"), 400, 404, 405, 501, stays=True)

# -- versions ----------------------------------------------------------------------------------------------------------

for _version in (b"HTTP/2.0", b"HTTP/0.9"):
    case(_version.decode(), get(start=b"GET /health " + _version), 505)
    case(f"{_version.decode()}, hot", post(start=POST[:-8] + _version), 505)
for _version in (b"HTTP/1.2", b"HTTP/3.0", b"HTTP/9.9"):  # no versions at all: the parser says so
    case(_version.decode(), get(start=b"GET /health " + _version), 400, 505)
    case(f"{_version.decode()}, hot", post(start=POST[:-8] + _version), 400, 505)
for _version in (b"HTTP/1.10", b"HTTP/11.1", b"http/1.1", b"HTTP /1.1", b"HTTP/1,1", b"HTTP/1.", b"HTTP/1", b"HTTP/"):
    case(f"version {_version.decode()}", get(start=b"GET /health " + _version), 400, 505)
case("version RTSP/1.0", get(start=b"GET /health RTSP/1.0"), 200, 400, 505)
for _version in (b"ICE/1.0", b"HTTPS/1.1", b"SIP/2.0", b"HTTP/-1.1", b"HTTP/1.1\0"):
    case(f"version {_version.decode()}", get(start=b"GET /health " + _version), 400, 505)
case("the preface of HTTP 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, 505)
case("HTTP 1.0", get(start=b"GET /health HTTP/1.0"), 200)
case("HTTP 1.0, hot", post(start=POST[:-1] + b"0"), 200)
case("HTTP 1.0, kept alive", post(b"connection: keep-alive", start=POST[:-1] + b"0"), 200, stays=True)
case("HTTP 1.0, no Host", get(start=b"GET /health HTTP/1.0", host=b""), 200, 400)

# -- Host --------------------------------------------------------------------------------------------------------------

_HOSTS = {
    "no Host": b"",
    "an empty Host": b"host:\r\n",
    "two Hosts": b"host: x\r\nhost: x\r\n",
    "two different Hosts": b"host: x\r\nhost: y\r\n",
    "Host with a path": b"host: localhost/x?\r\n",
    "Host with a user": b"host: u@x\r\n",
    "Host with a space": b"host: x y\r\n",
    "Host with a comma": b"host: x, y\r\n",
    "Host with a word for a port": b"host: x:http\r\n",
    "Host with a negative port": b"host: x:-1\r\n",
    "Host beyond ASCII": b"host: \xc3\xa4\r\n",
    "Host with half an address": b"host: [::1\r\n",
    "Host as an address": b"host: http://x\r\n",
    "Host with a percent": b"host: x%00y\r\n",
    "Host with a NUL": b"host: x\0y\r\n",
    "Host behind a space": b"host : x\r\n",
    "Host of 300 letters": b"host: " + b"x" * 300 + b"\r\n",
}
for _name, _host in _HOSTS.items():
    case(_name, get(host=_host), 400)
    case(f"{_name}, hot", post(host=_host), 400)
for _host in (b"[::1]:8000", b"127.0.0.1", b"a.b-c.example.org:1", b"X"):
    case(f"Host {_host.decode()}", get(host=b"HoSt:" + _host + b"\r\n"), 200, stays=True)

# -- lines and headers -------------------------------------------------------------------------------------------------

case("bare LF line ends", post().replace(b"\r\n", b"\n"), 400)
case("one bare LF", post().replace(HOST, b"host: x\n"), 400)
case("a bare LF behind the request line", post().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"), 400)
case("a bare LF at the end of the head", get()[:-2] + b"\n", 400)
case("a bare CR in a value", post(b"x: a\rb"), 400)
case("a bare CR for a line end", post(b"x: a\ry: b"), 400)
case("two CRs", post().replace(HOST, b"host: x\r\r\n"), 400)
case("a header hidden behind a bare LF", post(b"x: a\ntransfer-encoding: chunked"), 400)
case("a header hidden behind a bare CR", post(b"x: a\rtransfer-encoding: chunked"), 400)
case("a folded line", post(b"x: a", b" b"), 400)
case("a folded line by a tab", post(b"x: a", b"\tb"), 400)
case("a folded line first", get(host=b" x: y\r\nhost: x\r\n"), 400)
case("a folded length", bare(b"content-length:", b" %d" % len(BODY)) + BODY, 400)
case("a space before the colon", post(b"x : y"), 400)
case("a tab before the colon", post(b"x\t: y"), 400)
case("a length with a space before the colon", bare(b"content-length : %d" % len(BODY)) + BODY, 400)
case("a line without a colon", post(b"nothing"), 400)
case("an empty name", post(b": y"), 400)
case("a name with a space", post(b"x y: z"), 400)
case("a name with a NUL", post(b"x\0y: z"), 400)
case("a name beyond ASCII", post(b"\xc3\xa4: z"), 400)
case("a name with a bracket", post(b"x(y: z"), 400)
case("a name with a CR", post(b"x\ry: z"), 400)
case("a value with a NUL", post(b"x: a\0b"), 400)
case("a value with a control", post(b"x: a\x01b"), 400)
case("a value with DEL", post(b"x: a\x7fb"), 400)
case("a value with a terminal's escape", post(b"x: \x1b[31mred"), 400)
case("a value beyond ASCII", post(b"x: \xc3\xa4\xff"), 200, 400, stays=True)
case("an empty value", post(b"x:"), 200, stays=True)
case("a value among tabs", post(b"x:\t y \t"), 200, stays=True)
case("an underscore for the dash", post(b"content_length: 3", b"transfer_encoding: chunked"), 200, stays=True)
case("100 headers", post(*[b"x-%d: y" % i for i in range(96)]), 200, stays=True)
case("101 headers", post(*[b"x-%d: y" % i for i in range(97)]), 431)
case("10,000 headers", post(*[b"x-%d: y" % i for i in range(10_000)]), 431)
case("a value of 31 KiB", post(b"x: " + b"y" * 31 * 1024), 200, stays=True)
case("a value of 33 KiB", post(b"x: " + b"y" * 33 * 1024), 431)
case("a value of 256 KiB", post(b"x: " + b"y" * 256 * 1024), 431)
case("a name of 256 KiB", post(b"x" * 256 * 1024 + b": y"), 431)
case("a head of 1 MiB without end", bare()[:-2] + b"x: " + b"y" * MIB, 431)
case("lines without end", bare()[:-2] + b"x: y\r\n" * 20_000, 431)

# -- who asks ----------------------------------------------------------------------------------------------------------

_KEYS = {
    "no key": b"",
    "a scheme without a key": b"authorization: Bearer\r\n",
    "an unknown scheme": b"authorization: Digest x\r\n",
    "a wrong key": b"authorization: Bearer first-wrong\r\n",
    "a key with bytes beyond ASCII": b"authorization: Bearer \xff\xfe\r\n",
    "a key of 20 KiB": b"authorization: Bearer " + b"k" * 20_000 + b"\r\n",
    "half of a Basic key": b"authorization: Basic !!!\r\n",
    "a Basic key that is no UTF-8": b"authorization: Basic /////w==\r\n",
    "a key in a cookie": b"cookie: authorization=@KEY@\r\n",
}
for _name, _auth in _KEYS.items():
    case(_name, post(auth=_auth), 401, stays=True)
case("two keys", post(AUTH[:-2]), 400, 401, stays=True)
case("a key dropped as hop by hop", post(b"connection: keep-alive, authorization"), 200, 400, 401, stays=True)
case("a key in the path", bare(start=b"GET /v1/models?key=@KEY@ HTTP/1.1", auth=b""), 401, stays=True)

# -- lengths -----------------------------------------------------------------------------------------------------------

_LENGTH = b"content-length: %d" % len(BODY)
case("a length beside chunks", bare(_LENGTH, b"transfer-encoding: chunked") + BODY, 400)
case("chunks beside a length", bare(b"transfer-encoding: chunked", _LENGTH) + WHOLE + LAST, 400)
case("a length of nothing beside chunks", bare(b"content-length: 0", b"transfer-encoding: chunked") + WHOLE + LAST, 400)
case("two lengths", bare(_LENGTH, b"content-length: 2") + BODY, 400)
case("the same length twice", bare(_LENGTH, _LENGTH) + BODY, 400)
_LENGTHS = {
    "two in a list": b"2, 2",
    "a plus": b"+2",
    "a minus": b"-2",
    "hexadecimal": b"0x2",
    "two numbers": b"2 2",
    "empty": b"",
    "spaces": b"   ",
    "an exponent": b"2e0",
    "a fraction": b"2.0",
    "an underscore": b"2_0",
    "digits of another script": "٢".encode(),
    "a semicolon": b"2;",
    "quoted": b'"2"',
    "a vertical tab": b"\x0b2",
    "a NUL": b"2\0",
    "a word": b"chunked",
}
for _name, _value in _LENGTHS.items():
    case(f"length: {_name}", bare(b"content-length: " + _value) + b"{}", 400)
for _value in (b"18446744073709551616", b"18446744073709551618", b"9" * 30, b"9" * 1000):
    case(
        f"a length of {len(_value)} digits, {_value[-2:].decode()}",
        bare(b"content-length: " + _value) + b"{}",
        400,
        413,
    )
case("a length with zeros first", bare(b"content-length: 000%d" % len(BODY)) + BODY, 200, 400, stays=True)
case("no length", bare(), 400, stays=True)
case("a length of nothing", bare(b"content-length: 0"), 400, stays=True)
case("a body of GET", get(b"content-length: 5") + b"hello", 200, 400, stays=True)
case("chunks of GET", get(b"transfer-encoding: chunked") + chunk(b"hello") + LAST, 200, 400, stays=True)
case("a body that says it is too large", bare(b"content-length: %d" % (32 * MIB + 1)), 413)
case(
    "another body that says it is too large",
    bare(b"content-length: %d" % (MIB + 1), start=b"POST /admin/keys HTTP/1.1"),
    413,
)

# -- transfer encodings ------------------------------------------------------------------------------------------------

_CODINGS = {
    "identity": b"identity",
    "identity last": b"chunked, identity",
    "identity first": b"identity, chunked",
    "gzip first": b"gzip, chunked",
    "gzip": b"gzip",
    "twice": b"chunked, chunked",
    "another word": b"xchunked",
    "a longer word": b"chunkedx",
    "a parameter": b"chunked;q=1",
    "quoted": b'"chunked"',
    "a comma first": b", chunked",
    "a comma last": b"chunked,",
    "a vertical tab": b"\x0bchunked",
    "a vertical tab last": b"chunked\x0b",
    "a NUL": b"chunked\0",
    "a byte beyond ASCII": b"chunked\xff",
    "no-break space": b"\xa0chunked",
    "empty": b"",
    "two words": b"chunked x",
}
for _name, _value in _CODINGS.items():
    case(f"coding: {_name}", chunked(WHOLE, LAST, lines=[b"transfer-encoding: " + _value]), 400)
case("coding: in two headers", chunked(WHOLE, LAST, lines=[b"transfer-encoding: chunked"] * 2), 400)
case("coding: two kinds", chunked(WHOLE, LAST, lines=[b"transfer-encoding: chunked", b"transfer-encoding: x"]), 400)
case(
    "coding: two kinds, other way",
    chunked(WHOLE, LAST, lines=[b"transfer-encoding: x", b"transfer-encoding: chunked"]),
    400,
)
case("coding: a space before the colon", chunked(WHOLE, LAST, lines=[b"transfer-encoding : chunked"]), 400)
case("coding: folded", chunked(WHOLE, LAST, lines=[b"transfer-encoding:", b" chunked"]), 400)
case("coding: with HTTP 1.0", chunked(WHOLE, LAST, start=POST[:-1] + b"0"), 400)
case("coding: capitals", chunked(WHOLE, LAST, lines=[b"TRANSFER-ENCODING: Chunked"]), 200, 400, stays=True)
case("coding: tabs around", chunked(WHOLE, LAST, lines=[b"transfer-encoding:\tchunked\t"]), 200, 400, stays=True)

# -- chunks ------------------------------------------------------------------------------------------------------------

case("chunks", chunked(WHOLE, LAST), 200, stays=True)
case("chunks of one byte", chunked(*[chunk(BODY[i : i + 1]) for i in range(len(BODY))], LAST), 200, stays=True)
case("10,000 chunks of one byte", chunked(*[chunk(b" ")] * 10_000, WHOLE, LAST), 200, stays=True)
case("a size in capitals", chunked(chunk(BODY, SIZE.upper()), LAST), 200, stays=True)
case("a size with zeros first", chunked(chunk(BODY, b"0000" + SIZE), LAST), 200, 400, stays=True)
case("many zeros for the last chunk", chunked(WHOLE, b"000\r\n\r\n"), 200, 400, stays=True)
case("an extension", chunked(chunk(BODY, SIZE + b";name=value"), LAST), 200, 400, stays=True)
case("an extension of the last chunk", chunked(WHOLE, b"0;x\r\n\r\n"), 200, 400, stays=True)
_SIZES = {
    "a plus": b"+" + SIZE,
    "a minus": b"-" + SIZE,
    "0x": b"0x" + SIZE,
    "a space first": b" " + SIZE,
    "a space last": SIZE + b" ",
    "a tab last": SIZE + b"\t",
    "empty": b"",
    "no number": b"g",
    "an underscore": b"0_" + SIZE,
    "a NUL": SIZE + b"\0",
    "a comma": SIZE + b",",
    "digits of another script": "٢".encode(),
    "17 times f": b"f" * 17,
    "1 and 16 zeros": b"1" + b"0" * 16,
    "2^64 and the size": b"1" + b"0" * (16 - len(SIZE)) + SIZE,
    "300 digits": b"1" * 300,
}
for _name, _value in _SIZES.items():
    case(f"size: {_name}", chunked(chunk(BODY, _value), LAST), 400, 413)
case("size: one too small", chunked(chunk(BODY, b"%x" % (len(BODY) - 1)), LAST), 400)
case("size: one too large", chunked(chunk(BODY, b"%x" % (len(BODY) + 1)), LAST), 400)
case("size: none", chunked(LAST), 400, stays=True)
case("a bare LF behind a size", chunked(SIZE + b"\n" + BODY + b"\r\n", LAST), 400)
case("a bare CR behind a size", chunked(SIZE + b"\r" + BODY + b"\r\n", LAST), 400)
case("a bare LF behind a chunk", chunked(chunk(BODY, end=b"\n"), LAST), 400)
case("nothing behind a chunk", chunked(chunk(BODY, end=b""), LAST), 400)
case("two letters behind a chunk", chunked(chunk(BODY, end=b"XX"), LAST), 400)
case("two letters behind the last chunk", chunked(WHOLE, b"0\r\nXX\r\n"), 400)
case("a bare LF behind the last chunk", chunked(WHOLE, b"0\r\n\n"), 400)
case("bare LFs for the last chunk", chunked(WHOLE, b"0\n\n"), 400)
case("a bare LF in an extension", chunked(chunk(BODY, SIZE + b";x\ny"), LAST), 400)
case("a bare CR in an extension", chunked(chunk(BODY, SIZE + b";x\ry"), LAST), 400)
case("a line end in a quoted extension", chunked(chunk(BODY, SIZE + b';x="\r\n"'), LAST), 400)
case("a NUL in an extension", chunked(chunk(BODY, SIZE + b";x=\0"), LAST), 400)
case("an extension of 1 MiB", chunked(chunk(BODY, SIZE + b";x=" + b"y" * MIB), LAST), 400, 413, 431)
case("a trailer", chunked(WHOLE, b"0\r\nx: y\r\n\r\n"), 400)
case("a length in a trailer", chunked(WHOLE, b"0\r\ncontent-length: 5\r\n\r\n"), 400)
case("chunks in a trailer", chunked(WHOLE, b"0\r\ntransfer-encoding: chunked\r\n\r\n"), 400)
case("a key in a trailer", bare(b"transfer-encoding: chunked", auth=b"") + WHOLE + b"0\r\n" + AUTH + b"\r\n", 400, 401)
case("a trailer behind a bare LF", chunked(WHOLE, b"0\r\nx: y\n\r\n"), 400)
case("a trailer of 1 MiB", chunked(WHOLE, b"0\r\nx: " + b"y" * MIB), 400, 413, 431)
case("trailers without end", chunked(WHOLE, b"0\r\n" + b"x: y\r\n" * 20_000), 400, 413, 431)
case("a request for a trailer", chunked(WHOLE, b"0\r\n" + get()), 400)

# -- Expect, upgrades, what a body is ----------------------------------------------------------------------------------

case("Expect", post(b"expect: 100-continue"), 200, stays=True)
case("Expect in capitals", post(b"Expect: 100-Continue"), 200, 417, stays=True)
case("Expect of another kind", post(b"expect: 200-ok"), 417)
case("Expect of two kinds", post(b"expect: 100-continue, x"), 417)
case("Expect twice", post(b"expect: 100-continue", b"expect: x"), 400, 417)
case("Expect of nothing", post(b"expect:"), 200, 400, 417, stays=True)
case("Expect of another kind for a page", get(b"expect: 200-ok"), 417)
case("Expect without a key", post(b"expect: 100-continue", auth=b""), 401, stays=True)
case("Expect of too much", bare(b"expect: 100-continue", b"content-length: %d" % (32 * MIB + 1)), 413)
case("Expect with HTTP 1.0", post(b"expect: 100-continue", start=POST[:-1] + b"0"), 200)
_WEBSOCKET = (
    b"upgrade: websocket",
    b"connection: Upgrade",
    b"sec-websocket-version: 13",
    b"sec-websocket-key: " + b"A" * 22 + b"==",
)
_H2C = (b"upgrade: h2c", b"connection: Upgrade, HTTP2-Settings", b"http2-settings: AAMAAABkAAQAAP__")
case("a websocket", get(*_WEBSOCKET), 200)
case("a websocket of a hot route", bare(*_WEBSOCKET, start=b"GET /v1/chat/completions HTTP/1.1"), 405)
case("a websocket by POST", post(*_WEBSOCKET), 200, 400)
case("h2c", get(*_H2C), 200)
case("h2c by POST", post(*_H2C), 200, 400)
case("h2c and bytes of HTTP 2", get(*_H2C) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 200)
case("Upgrade alone", get(b"upgrade: websocket"), 200, stays=True)
case("Connection: Upgrade alone", get(b"connection: upgrade"), 200, stays=True)
case("an upgrade to TLS", get(b"upgrade: TLS/1.0", b"connection: Upgrade"), 200)
case("an upgrade without a key", bare(*_WEBSOCKET, start=b"GET /v1/models HTTP/1.1", auth=b""), 401)
_KINDS = {
    "none": (b"", {415}),
    "text": (b"content-type: text/plain\r\n", {415}),
    "a form": (b"content-type: multipart/form-data; boundary=x\r\n", {415}),
    "almost JSON": (b"content-type: application/jsonx\r\n", {415}),
    "a list": (b"content-type: text/plain, application/json\r\n", {415}),
    "empty": (b"content-type:\r\n", {415}),
    "two": (JSON + b"content-type: text/plain\r\n", {400, 415}),
    "a charset": (b"content-type: application/json; charset=utf-8\r\n", {200}),
    "capitals": (b"content-type: Application/JSON\r\n", {200}),
}
for _name, (_kind, _statuses) in _KINDS.items():
    case(f"content type: {_name}", post(kind=_kind), *_statuses, stays=True)
for _value in (b"gzip", b"identity", b"br, gzip", b""):
    case(f"content encoding '{_value.decode()}'", post(b"content-encoding: " + _value), 400, stays=_value == b"")
case("Connection: close", post(b"connection: close"), 200)
case("Connection: CLOSE among others", post(b"connection: foo, CLOSE"), 200)
case("close and keep", post(b"connection: close, keep-alive"), 200)

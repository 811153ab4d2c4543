"""Requests that somebody sends who means no good, byte by byte, and what each has to get.

Their service may take no more than ``LIMITS`` allow. Whoever can be answered is ``u-2``, known to it or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

LIMITS = {"DVIB_SERVE_READ_TIMEOUT_S": "2", "DVIB_SERVE_MAX_FILTER_IDS": "1000"}
PATIENCE_S = 2.0
"""Seconds for which `LIMITS` let a connection without a request stay."""
PROBE = b"POST /recommend?user_id=u-2&k=3 HTTP/1.1\r\nHost: x\r\nX-Request-ID: probe\r\n\r\n"
SMUGGLED, PROBED = "smuggled", "probe"
"""Request ids of what hides in other requests and of the probe."""
_INNER = b"POST /recommend?user_id=smuggled HTTP/1.1\r\nHost: x\r\nX-Request-ID: smuggled\r\n\r\n"
_JSON = b"Content-Type: application/json\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_BODY = b'{"user_id":"u-2","k":3}'
_LARGE = 10_000_000


@dataclass(frozen=True)
class Attack:
    """What is sent over one connection.

    Attributes:
        name: For people.
        parts: Sent one after the other; after the first comes a pause in which the server may reply already.
        status: Of the only reply.
        code: Of its error; empty where it does not matter. A reply 200 must be the one to `PROBE`'s question.
        or_status: Another that may come, where it depends on how the parts reach the server.
        may_be_lost: Whether the connection may be reset before the reply is read: more is sent than a server reads.
    """

    name: str
    parts: tuple[bytes, ...]
    status: int
    code: str = ""
    may_be_lost: bool = False
    or_status: int = 0


def _get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"


def _ask(query: bytes, headers: bytes = b"", method: bytes = b"POST") -> bytes:
    return method + b" /recommend?" + query + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"


def _post(headers: bytes, body: bytes, path: bytes = b"/recommend") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + _JSON + headers + b"\r\n" + body


def _json(body: bytes, headers: bytes = b"", path: bytes = b"/recommend") -> bytes:
    return _post(b"Content-Length: %d\r\n" % len(body) + headers, body, path)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _of_queries() -> list[Attack]:
    found = [
        Attack(f"k={k!r}", (_ask(b"user_id=u-2&k=" + quote(k).encode()),), 422, "invalid_k")
        for k in ("0", "-1", "1000000000", "1e3", "0x10", "true", " 5", "+5", "5.0", "٥", "", "9" * 5000, "1_0", "NaN")
    ]
    found += [
        Attack(f"min_score={score!r}", (_ask(b"user_id=u-2&min_score=" + score),), 422, "invalid_score")
        for score in (b"1e400", b"nan", b"inf", b"-Infinity", b"0x1p3", b"1_0", b"", b"9" * 1000 + b"e9999999999")
    ]
    found += [
        Attack(f"id {name!r}", (_ask(b"user_id=" + name),), 422, "invalid_id")
        for name in (b"", b"%00", b"a%00b", b"%ff", b"%C0%80", b"%ED%A0%80", b"%F4%90%80%80", b"%fe%ff")
    ]
    found += [
        Attack(f"{name!r} twice", (_ask(b"user_id=u-2&" + name + b"&" + name),), 422, "repeated_parameter")
        for name in (
            b"user_id=u-2",
            b"k=1",
            b"model=toy",
            b"category=x",
            b"min_score=1",
            b"exclude_seen=true",
            b"%6b=1",
        )
    ]
    long = b"x" * 100_000
    return [
        *found,
        Attack("a name written otherwise", (_ask(b"user_id=u-2&k=1&%6B=2"),), 422, "repeated_parameter"),
        Attack("a long id in the query", (_ask(b"user_id=" + long),), 414, "uri_too_long", may_be_lost=True),
        Attack(
            "a long id in the path", (_get(b"/items/" + long + b"/similar"),), 414, "uri_too_long", may_be_lost=True
        ),
        Attack("a long id in the body", (_json(b'{"user_id":"%b"}' % long),), 422, "id_too_long"),
        Attack("a long id in a list", (_json(b'{"user_id":"u","history":["%b"]}' % long),), 422, "id_too_long"),
        Attack("10,000 parameters", (_ask(b"user_id=u-2&k=3" + b"&a=" * 10_000),), 200),
        Attack("many ids", (_ask(b"user_id=u-2&" + b"&".join([b"exclude=a"] * 1001)),), 422, "too_many_ids"),
        Attack("NUL in the path", (_get(b"/items/%00/similar"),), 422, "invalid_id"),
        Attack("no UTF-8 in the path", (_get(b"/users/%ff%fe/history"),), 422, "invalid_id"),
        Attack("raw bytes in the path", (_get(b"/items/\xff\xfe/similar"),), 400, "invalid_request"),
        Attack("raw NUL in the query", (_ask(b"user_id=\0"),), 400, "invalid_request"),
        Attack("up and out", (_get(b"/models/../../etc/passwd"),), 404, "not_found"),
        Attack("up and out, encoded", (_get(b"/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/certificate"),), 404),
    ]


def _of_bodies() -> list[Attack]:
    wrong = {
        "NaN": b'{"user_id":"u","min_score":NaN}',
        "Infinity": b'{"user_id":"u","min_score":-Infinity}',
        "1e400": b'{"user_id":"u","min_score":1e400}',
        "a number without end": b'{"user_id":"u","k":%b}' % (b"9" * 100_000),
        "deep lists": b"[" * 200_000,
        "deep lists in a field": b'{"user_id":"u","history":%b%b}' % (b"[" * 50_000, b"]" * 50_000),
        "deep objects": b'{"user_id":' * 50_000 + b"1" + b"}" * 50_000,
        "deep requests": b'{"requests":' * 1000 + b"[]" + b"}" * 1000,
        "no UTF-8": b'{"user_id":"\xff\xfe"}',
        "half a surrogate": b'{"user_id":"\\udc00"}',
        "a mark of the byte order": b'\xef\xbb\xbf{"user_id":"u-2"}',
        "UTF-16": '{"user_id":"u-2"}'.encode("utf-16"),
        "NUL": b'{"user_id":"a\\u0000b"}',
        "raw NUL": b'{"user_id":"a\0b"}',
        "a comment": b'{"user_id":"u-2"/**/}',
        "two documents": b'{"user_id":"u-2"}{"user_id":"u-2"}',
        "__proto__": b'{"user_id":"u-2","__proto__":{"k":3}}',
        "200,000 fields": b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
        "k as text": b'{"user_id":"u-2","k":"3"}',
    }
    found = [
        Attack(f"{name} to {path!r}", (_json(body, path=path),), 422)
        for name, body in wrong.items()
        for path in (b"/recommend", b"/recommend/batch")
    ]
    types = {
        b"text/plain": 415,
        b"application/xml": 415,
        b"application/x-www-form-urlencoded": 415,
        b"multipart/form-data; boundary=x": 415,
        b"application/json; charset=utf-16": 415,
        b"application/json\r\nContent-Type: text/plain": 415,
        b"application/json\r\nContent-Encoding: gzip": 415,
        b"application/json\r\nContent-Encoding: identity, br": 415,
        b"application/json\r\nContent-Encoding: identity": 200,
    }
    for given, status in types.items():
        head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: " + given
        body = head + b"\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
        found.append(Attack(f"type {given!r}", (body,), status, "" if status == 200 else "unsupported_media_type"))
    # Of two fields of one name the last counts, in JSON as Python, browsers and orjson read it.
    twice = b'{"user_id":"smuggled","user_id":"u-2","k":1,"k":3}'
    large = b"x" * _LARGE
    pieces = _chunk(b"x" * 50_000) * (_LARGE // 50_000)
    return [
        *found,
        Attack("one field twice", (_json(twice),), 200),
        Attack("10 MB", (_post(b"Content-Length: %d\r\n" % _LARGE, large),), 413, "body_too_long", may_be_lost=True),
        Attack("10 MB, chunked", (_post(_CHUNKED, pieces),), 413, "body_too_long", may_be_lost=True),
        Attack("10 MB of a batch", (_json(large, path=b"/recommend/batch"),), 413, "body_too_long", may_be_lost=True),
        Attack("10 MB to nowhere", (_json(large, path=b"/nowhere"),), 413, "body_too_long", may_be_lost=True),
        # Without a length, what follows the head is no body but, at once or after the reply, what is no HTTP.
        Attack("10 MB, no length", (_ask(b"user_id=u-2&k=3"), large), 200, may_be_lost=True, or_status=400),
    ]


def _of_methods() -> list[Attack]:
    return [
        *(
            Attack(f"{method!r}", (_ask(b"user_id=u-2", method=method),), 405)
            for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND")
        ),
        *(Attack(f"{method!r}", (method + _get(b"/models")[3:],), 405) for method in (b"POST", b"OPTIONS", b"TRACE")),
        Attack("no method", (_ask(b"user_id=u-2", method=b"GIVE"),), 400, "invalid_request"),
        Attack("lower case", (_ask(b"user_id=u-2", method=b"post"),), 400, "invalid_request"),
        Attack("CONNECT", (b"CONNECT inner:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n", _INNER), 400),
        Attack("CONNECT to a path", (b"CONNECT /recommend HTTP/1.1\r\nHost: x\r\n\r\n", _INNER), 400),
        Attack("OPTIONS *", (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",), 404),
        Attack("HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), 400, "invalid_request"),
        Attack("TLS", (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,), 400, "invalid_request"),
        Attack("absolute form", (b"POST http://inner/recommend?user_id=u-2&k=3 HTTP/1.1\r\nHost: x\r\n\r\n",), 200),
        Attack("impossible port", (b"POST http://a:b@x:99999/recommend HTTP/1.1\r\nHost: x\r\n\r\n",), 400),
    ]


def _of_framing() -> list[Attack]:
    """Two servers must not disagree on where a request ends: nothing may be taken for a request of its own."""
    both = {
        "Content-Length first": b"Content-Length: 5\r\n" + _CHUNKED,
        "Transfer-Encoding first": _CHUNKED + b"Content-Length: 5\r\n",
        "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n",
        "a list of lengths": b"Content-Length: 5, 5\r\n",
        "a signed length": b"Content-Length: +5\r\n",
        "a negative length": b"Content-Length: -5\r\n",
        "a length in hexadecimal": b"Content-Length: 0x5\r\n",
        "no length": b"Content-Length: \r\n",
        "a length with a space": b"Content-Length: 5 5\r\n",
        "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n",
        "a space before the colon": b"Transfer-Encoding : chunked\r\n",
        "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
        "chunked, but not last": b"Transfer-Encoding: chunked, identity\r\n",
        "chunked and more": _CHUNKED + b"Transfer-Encoding: identity\r\n",
        "two codings": b"Transfer-Encoding: gzip, chunked\r\n",
        "chunked after a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
        "a folded header": b"Transfer-Encoding:\r\n chunked\r\n",
        "a bare line feed": b"a: b\nTransfer-Encoding: chunked\r\n",
        "a bare carriage return": b"a: b\rTransfer-Encoding: chunked\r\n",
        "NUL in a header": b"a: b\0c\r\n" + _CHUNKED,
        "a header without a name": b": b\r\n" + _CHUNKED,
    }
    found = [
        Attack(name, (_post(headers, b"0\r\n\r\n" + _INNER),), 400, "invalid_request") for name, headers in both.items()
    ]
    chunks = {
        "a chunk with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "a negative chunk": b"-5\r\nhello\r\n0\r\n\r\n",
        "a chunk beyond 64 bits": b"f" * 20 + b"\r\nhello\r\n",
        "a chunk of words": b"xyz\r\nhello\r\n0\r\n\r\n",
        "a space after a chunk's size": b"5 \r\nhello\r\n0\r\n\r\n",
        "a chunk that is too short": b"9\r\nhello\r\n0\r\n\r\n",
        "a chunk that is too long": b"3\r\nhello\r\n0\r\n\r\n",
        "chunks between bare line feeds": b"5\nhello\n0\n\n",
        "a line feed in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "a length in the trailer": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    }
    found += [
        Attack(name, (_post(_CHUNKED, chunk + _INNER),), 400, "invalid_request") for name, chunk in chunks.items()
    ]
    upgrade = b"Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n"
    for wanted in (b"h2c", b"websocket"):
        headers = upgrade % wanted
        length = b"Content-Length: %d\r\n" % len(_BODY)
        found += [
            Attack(f"{wanted!r} and a body", (_post(headers + length, _BODY),), 200),
            Attack(f"{wanted!r} and a body later", (_post(headers + length, b""), _BODY), 200),
            Attack(f"{wanted!r} and chunks", (_post(headers + _CHUNKED, b""), _chunk(_BODY) + b"0\r\n\r\n"), 200),
            Attack(f"{wanted!r} and no body", (_ask(b"user_id=u-2&k=3", headers),), 200),
            Attack(
                f"{wanted!r} and a request as body",
                (_post(headers + b"Content-Length: %d\r\n" % len(_INNER), b""), _INNER),
                422,
                "invalid_body",
            ),
        ]
    headers_after = _chunk(_BODY) + b"0\r\nX-Request-ID: smuggled\r\nContent-Type: text/plain\r\n\r\n"
    endless = b"a: b\r\n" * 100_000
    return [
        *found,
        Attack("headers in the trailer", (_post(_CHUNKED, headers_after),), 200),
        Attack("an endless trailer", (_post(_CHUNKED, b"0\r\n"), endless), 431, may_be_lost=True),
        Attack("one endless trailer", (_post(_CHUNKED, b"0\r\na: "), b"x" * _LARGE), 431, may_be_lost=True),
        Attack("an endless extension", (_post(_CHUNKED, b"5;"), b"x" * _LARGE), 431, may_be_lost=True),
        Attack("50,000 headers", (_ask(b"user_id=u-2", b"a: b\r\n" * 50_000),), 431, may_be_lost=True),
        Attack("a header of 10 MB", (_ask(b"user_id=u-2", b"a: " + b"x" * _LARGE + b"\r\n"),), 431, may_be_lost=True),
        Attack("a body for GET", (_get(b"/healthz")[:-2] + b"Content-Length: %d\r\n\r\n" % len(_INNER), _INNER), 200),
    ]


def _of_patience() -> list[Attack]:
    return [
        Attack("half a line", (b"POST /recomm",), 408, "request_timeout"),
        Attack("half a head", (_ask(b"user_id=u-2")[:-2],), 408, "request_timeout"),
        Attack("no body", (_post(b"Content-Length: 5\r\n", b""),), 408, "request_timeout"),
        Attack("half a body", (_post(b"Content-Length: 50\r\n", _BODY),), 408, "request_timeout"),
        Attack("half a chunk", (_post(_CHUNKED, b"50\r\n" + _BODY),), 408, "request_timeout"),
        Attack("a chunk of 2^63", (_post(_CHUNKED, b"7fffffffffffffff\r\n" + _BODY),), 408, "request_timeout"),
        Attack("no end of chunks", (_post(_CHUNKED, _chunk(_BODY)),), 408, "request_timeout"),
        Attack("half a trailer", (_post(_CHUNKED, b"0\r\na: b\r\n"),), 408, "request_timeout"),
    ]


def all_attacks() -> list[Attack]:
    """Return one of every kind, some 100 MB in all."""
    return [*_of_queries(), *_of_bodies(), *_of_methods(), *_of_framing(), *_of_patience()]

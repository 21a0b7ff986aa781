"""A local server that speaks as much of OpenAI's protocol as a judge needs.

It rates a text that says sir with 90, one that says yo with 10, any other with 50,
unless the test gives it other answers. It counts who asks what, and how many at once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer to one request; `body` replaces the usual JSON."""

    content: str | None = "50"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None


Answers = Callable[[str, int], Reply | str]
"""From a text and how often it was sent before to the answer."""


def by_word(text: str, _before: int) -> str:
    lower = text.lower()
    return "90" if "sir" in lower else "10" if "yo" in lower else "50"


@dataclass
class StandIn:
    """What the server was asked."""

    answers: Answers = by_word
    delay: float = 0.0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], key: str) -> Reply:
        """Notes the request and answers it."""
        text = body["messages"][0]["content"].split("-----\n")[-1].split("\n-----")[0]
        with self.lock:
            before = self.texts.count(text)
            self.bodies.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self.texts.append(text)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(self.delay)
        with self.lock:
            self.now -= 1
        answer = self.answers(text, before)
        return answer if isinstance(answer, Reply) else Reply(answer)


@contextmanager
def serving(answers: Answers = by_word, *, delay: float = 0.0) -> Iterator[StandIn]:
    """A server on a free port of this machine, gone at the end."""
    stand_in = StandIn(answers, delay)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = stand_in.reply(body, self.headers.get("Authorization", ""))
            if self.path != "/v1/chat/completions":
                reply = Reply(status=404)
            data = _completion(reply).encode()
            self.send_response(reply.status)
            headers = {"Content-Type": "application/json", **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_args: object) -> None:
            """A client that was killed or lost patience is no error of the server's."""

    with Server(("127.0.0.1", 0), Handler) as server:
        stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()


def _completion(reply: Reply) -> str:
    if reply.body is not None:
        return reply.body
    if reply.status != 200:
        return json.dumps({"error": {"message": f"status {reply.status}"}})
    message = {"role": "assistant", "content": reply.content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps(
        {
            "id": "0",
            "object": "chat.completion",
            "created": 0,
            "model": "stand-in",
            "choices": [choice],
        }
    )

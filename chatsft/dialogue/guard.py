"""What the page's server lets in and out."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_REQUEST_BYTES = 256 * 1024
"""A message, its settings and what gradio adds take a few thousand."""

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"


class RequestLimits:
    """Refuse what is too large, and tell the browser to fetch nothing from anywhere else."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = await read_body(receive) if scope["method"] in ("POST", "PUT", "PATCH") else None
        if body is not None and len(body) > MAX_REQUEST_BYTES:
            return await refuse(send)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive if body is None else replay(body, receive), send_with_policy)


async def read_body(receive: Receive) -> bytes:
    """Read a body, or a little more of it than is let in, whatever its headers say of its size."""
    body = b""
    while len(body) <= MAX_REQUEST_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


def replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives the application the body that was read, and then whatever comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def refuse(send: Send) -> None:
    text = f"The request is larger than {MAX_REQUEST_BYTES} bytes.".encode()
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})

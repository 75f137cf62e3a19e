"""An agent that is a web server: verifies what the service sends, and answers word by word.

    make run                                        # the service, in another terminal
    .venv/bin/python examples/webhook.py            # defines the agent, then listens on port 8000
    .venv/bin/sessions-api chat --agent 5b0c2b5e-6d3c-4f0e-8a39-1d2f6a7c9b02

Elsewhere than on your own machine the secret would come from the environment,
and the definition be put once: `PUT /api/agents/{agentId}` makes a secret and
shows it that one time.
"""

import asyncio
import base64
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

SERVICE = os.environ.get("SESSIONS_URL", "http://127.0.0.1:3000")
AGENT_ID = "5b0c2b5e-6d3c-4f0e-8a39-1d2f6a7c9b02"
PORT = int(os.environ.get("WEBHOOK_PORT", "8000"))
SECRET = os.environ.get("WEBHOOK_SECRET") or "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


async def turns(request: Request) -> Response:
    try:
        turn = Webhook(SECRET).verify(await request.body(), dict(request.headers))["data"]
    except WebhookVerificationError:
        return PlainTextResponse("not signed by the service", 401)
    # turn["turnId"] is also the header webhook-id, the same when an attempt is repeated.
    return StreamingResponse(backwards(turn), media_type="text/event-stream")


async def backwards(turn: dict) -> AsyncIterator[str]:
    words = turn["messages"][-1]["content"].split()
    for word in reversed(words):
        yield event("delta", {"text": word + " "})
        await asyncio.sleep(0.1)  # as if it had to think
    yield event("done", {"metadata": {"thought": f"{len(words)} words, the last one first"}})


def event(name: str, data: dict) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


app = Starlette(routes=[Route("/turns", turns, methods=["POST"])])

if __name__ == "__main__":
    config = {"url": f"http://127.0.0.1:{PORT}/turns", "secret": SECRET}
    definition = {"name": "Backwards", "kind": "webhook", "config": config}
    reply = httpx2.put(f"{SERVICE}/api/agents/{AGENT_ID}", json=definition)
    if not reply.is_success:
        sys.exit(f"The service does not take the definition: {reply.text}")
    uvicorn.run(app, port=PORT, log_level="warning")

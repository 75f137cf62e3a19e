"""The server of an app with a chat: it keeps the access key, and its pages get a token for one session.

.venv/bin/sessions-api keys new --app shop --scope app --file keys.txt     # shows the key, once
SESSIONS_KEYS_FILE=keys.txt SESSIONS_CORS_ORIGINS=http://127.0.0.1:8080 make run
SESSIONS_API_KEY=… .venv/bin/python examples/backend.py                    # in another terminal
"""

import os
import secrets
from pathlib import Path
from uuid import uuid4

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

SERVICE = os.environ.get("SESSIONS_URL", "http://127.0.0.1:3000")
AGENT_ID = os.environ.get("AGENT_ID", "00000000-0000-4000-8000-000000000001")
TOKEN_S = int(os.environ.get("TOKEN_SECONDS", "300"))
SCOPES = ["read", "send", "renew", "cancel", "end"]
SLOT = '<meta name="sessions-api" content="{}">'
PAGE = Path(__file__).with_name("chat.html").read_text().replace(SLOT.format(""), SLOT.format("/session"))
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    f"connect-src 'self' {SERVICE}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
api = httpx2.AsyncClient(
    base_url=f"{SERVICE}/api/messaging/sessions", headers={"X-API-KEY": os.environ["SESSIONS_API_KEY"]}
)
users: dict[str, str] = {}  # login → user; your app's own login in its place


async def page(request: Request) -> Response:
    login = request.cookies.get("login", "")
    if login not in users:  # as if somebody had signed in
        login = secrets.token_urlsafe()
        users[login] = str(uuid4())
    reply = HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})
    # Strict: no other site can make a browser ask for a token. Behind HTTPS also secure=True.
    reply.set_cookie("login", login, httponly=True, samesite="strict")
    return reply


async def give(request: Request) -> Response:
    """A session of the user's, a new one if none is named, and a token that opens it."""
    user = users.get(request.cookies.get("login", ""))
    if user is None:
        return JSONResponse({"error": {"message": "You are signed out."}}, 401)
    named = request.path_params.get("session_id")
    new = {"agentId": AGENT_ID, "userId": user}
    found = await (api.get(f"/{named}") if named else api.post("", json=new))
    if found.is_success and found.json()["userId"] != user:  # a page may name any session
        return JSONResponse({"error": {"message": "There is no such session."}}, 404)
    if found.is_success:
        body = {"scopes": SCOPES, "ttlSeconds": TOKEN_S}
        found = await api.post(f"/{found.json()['sessionId']}/tokens", json=body)
    given = {"url": SERVICE, "ttlSeconds": TOKEN_S} if found.is_success else {}
    return JSONResponse(found.json() | given, found.status_code)


async def sign_out(request: Request) -> Response:
    """The login ends, and with it, at once, every token of the user's sessions."""
    user = users.pop(request.cookies.get("login", ""), None)
    found = (await api.get("", params={"userId": user})).json()["sessions"] if user else []
    for session in found:
        await api.delete(f"/{session['sessionId']}/tokens")
    return Response(status_code=204)


token = Route("/session", give, methods=["POST"])
token_of = Route("/session/{session_id:uuid}", give, methods=["POST"])
app = Starlette(routes=[Route("/", page), token, token_of, Route("/sign-out", sign_out, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("BACKEND_PORT", "8080")), log_level="warning")

"""A receiver in FastAPI: verify, answer a challenge, keep each event once, say thank you.

Run it with the endpoint's secret, or with several, separated by spaces, while they change:

    cd examples/receivers
    WEBHOOK_SECRETS=whsec_... uvicorn --port 9000 fastapi_receiver:app
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from inbox import Inbox

from hookjetty.verify import VerificationError, challenge_response, verify

SECRETS = os.environ["WEBHOOK_SECRETS"].split()

app = FastAPI()
inbox = Inbox(os.environ.get("INBOX", "inbox.db"))


@app.post("/hook")
async def hook(request: Request) -> Response:
    body = await request.body()
    try:
        event = verify(body, request.headers, SECRETS)
    except VerificationError as reason:
        return JSONResponse({"error": str(reason)}, status_code=400)
    if answer := challenge_response(event):
        return JSONResponse(answer)
    await run_in_threadpool(inbox.add, event["id"], body)
    return Response(status_code=204)

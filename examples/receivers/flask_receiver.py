"""A receiver in Flask: verify, answer a challenge, keep each event once, say thank you.

Run it with the endpoint's secret, or with several, separated by spaces, while they change:

    cd examples/receivers
    WEBHOOK_SECRETS=whsec_... gunicorn --bind 127.0.0.1:9000 flask_receiver:app
"""

from __future__ import annotations

import os

from flask import Flask, request
from flask.typing import ResponseReturnValue
from inbox import Inbox

from hookjetty.verify import VerificationError, challenge_response, verify

SECRETS = os.environ["WEBHOOK_SECRETS"].split()

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024  # an event is smaller; a stranger's body need not be
inbox = Inbox(os.environ.get("INBOX", "inbox.db"))


@app.post("/hook")
def hook() -> ResponseReturnValue:
    body = request.get_data()
    try:
        event = verify(body, request.headers, SECRETS)
    except VerificationError as reason:
        return {"error": str(reason)}, 400
    if answer := challenge_response(event):
        return answer
    inbox.add(event["id"], body)
    return "", 204

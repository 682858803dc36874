"""A receiver in Django: verify, answer a challenge, keep each event once, say thank you.

Run it with the endpoint's secret, or with several, separated by spaces, while they change:

    cd examples/receivers
    WEBHOOK_SECRETS=whsec_... gunicorn --bind 127.0.0.1:9000 django_receiver:application

In a project of yours the view stands in views.py, and the project brings the rest.
"""

from __future__ import annotations

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from inbox import Inbox

from hookjetty.verify import VerificationError, challenge_response, verify

SECRETS = os.environ["WEBHOOK_SECRETS"].split()

inbox = Inbox(os.environ.get("INBOX", "inbox.db"))


@csrf_exempt  # the signature is the proof
@require_POST
def hook(request: HttpRequest) -> HttpResponse:
    try:
        event = verify(request.body, request.headers, SECRETS)
    except VerificationError as reason:
        return JsonResponse({"error": str(reason)}, status=400)
    if answer := challenge_response(event):
        return JsonResponse(answer)
    inbox.add(event["id"], request.body)
    return HttpResponse(status=204)


settings.configure(ROOT_URLCONF=__name__)
urlpatterns = [path("hook", hook)]
application = get_wsgi_application()

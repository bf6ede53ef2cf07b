"""The same in Django, as one file: the blocking view as it was, and beside it the one that streams.

cd examples/legacy-django
PYTHONPATH=../legacy-flask/after python shop.py runserver 127.0.0.1:5000
"""

import sys

import django
import jobs
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from report import make_report
from rq import Retry

from runtail import RuntailError

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DEBUG=True,
    MIDDLEWARE=[f"{__name__}.Refusals"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this machine only",
)


@csrf_exempt
@require_POST
def report(request):
    return JsonResponse(make_report(request.POST["customer"]))


@csrf_exempt
@require_POST
def start(request):
    """Have it made by `rq worker`; an EventSource of the page opens `watch_url`."""
    customer = request.POST["customer"]
    opened = jobs.runtail.open(user=user(request), input={"customer": customer})
    jobs.queue.enqueue(jobs.report, customer, ref=opened.ref, retry=Retry(max=2))
    return JsonResponse({"run_id": opened.run_id, "watch_url": opened.watch_url}, status=202)


@csrf_exempt
@require_POST
def stop(request, run_id):
    jobs.runtail.for_user(user(request)).cancel(run_id)
    return HttpResponse(status=204)


class Refusals:
    """Middleware: what Runtail refuses is no error of this app."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, error):
        if isinstance(error, RuntailError):
            text, status = jobs.refusal(error)
            return HttpResponse(text, status=status)


def user(request):
    """Whose run it is: as your login says, `request.user.get_username()`."""
    return request.META.get("REMOTE_USER") or "demo"


urlpatterns = [path("report", report), path("live", start), path("live/<run_id>/stop", stop)]

if __name__ == "__main__":
    django.setup()
    execute_from_command_line(sys.argv)

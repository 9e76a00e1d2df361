"""A Django project in one file."""

import os
import sys
import threading

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

settings.configure(
    DEBUG=True,
    SECRET_KEY="a key for tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
)


def where(request):
    return JsonResponse({"process": os.getpid(), "thread": threading.current_thread().name})


@csrf_exempt
def upload(request):
    return JsonResponse({"bytes": len(request.body), "type": request.content_type})


def stream(request):
    return StreamingHttpResponse(f"line {number}\n" for number in range(1000))


def error(request):
    return JsonResponse({"result": 1 / 0})


urlpatterns = [
    path("where", where),
    path("upload", upload),
    path("stream", stream),
    path("error", error),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)

"""Werkzeug's development server as its documentation starts it: ``run_simple`` in a script."""

import sys

from flask_app import app
from werkzeug.serving import run_simple

OPTIONS = {
    "serial": {},
    "threaded": {"threaded": True},
    "forking": {"processes": 2},
    "reloader": {"use_reloader": True, "reloader_interval": 0.1, "reloader_type": "stat"},
}

if __name__ == "__main__":
    run_simple("127.0.0.1", 0, app, **OPTIONS[sys.argv[1]])

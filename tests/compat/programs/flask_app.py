"""A Flask application, as in Flask's own quick start."""

import os
import threading

from flask import Flask, request, session

app = Flask(__name__)
app.secret_key = "a key for tests"


@app.get("/")
def index():
    session["visits"] = session.get("visits", 0) + 1
    return f"visit {session['visits']}\n"


@app.post("/upload")
def upload():
    return {"bytes": len(request.get_data()), "type": request.content_type}


@app.get("/stream")
def stream():
    return (f"line {number}\n" for number in range(1000)), {"Content-Type": "text/plain"}


@app.get("/where")
def where():
    return {"process": os.getpid(), "parent": os.getppid(), "thread": threading.current_thread().name}


@app.get("/error")
def error():
    return str(1 / 0)

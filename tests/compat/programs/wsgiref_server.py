"""Servers of the standard library's documentation of ``wsgiref``: first one request, then any number."""

from wsgiref.simple_server import demo_app, make_server
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator


def simple_app(environ, start_response):
    setup_testing_defaults(environ)
    start_response("200 OK", [("Content-type", "text/plain; charset=utf-8")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}\n".encode()]


with make_server("127.0.0.1", 0, demo_app) as httpd:
    print(f"http://127.0.0.1:{httpd.server_port}/", flush=True)
    httpd.handle_request()

with make_server("127.0.0.1", 0, validator(simple_app)) as httpd:
    print(f"http://127.0.0.1:{httpd.server_port}/ is the second", flush=True)
    httpd.serve_forever()

"""A program with metrics, as in the documentation of the Prometheus client."""

import signal
import threading

from prometheus_client import Counter, start_http_server

REQUESTS = Counter("my_requests", "Description of counter")

if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server, thread = start_http_server(0, addr="127.0.0.1")
    REQUESTS.inc(3)
    print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
    stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    print("stopped")

"""A program whose logging is configured over the network, as in the logging cookbook."""

import logging.config
import signal
import threading

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())

listener = logging.config.listen(0, verify=lambda data: None if b"forbidden" in data else data)
listener.start()
listener.ready.wait()
print(f"listening on 127.0.0.1:{listener.port}", flush=True)

logger = logging.getLogger("app")
while not stop.wait(0.02):
    logger.info("an info")
    logger.error("an error")

logging.config.stopListening()
listener.join()
print("stopped")

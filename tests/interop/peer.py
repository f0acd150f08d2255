"""Whom the gateway takes clients for, all connected at once; one that is refused says how.
usage: peer.py WS_URL ORIGIN SOURCE_ADDRESS...   (ORIGIN may be empty)"""

import json
import sys
from contextlib import ExitStack

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

URL, ORIGIN, SOURCES = sys.argv[1], sys.argv[2] or None, sys.argv[3:]
FORGED = {"X-Forwarded-For": "9.9.9.9", "Forwarded": 'for=9.9.9.9, for="'}

with ExitStack() as stack:
    for source in SOURCES:
        try:
            ws = stack.enter_context(
                connect(URL, origin=ORIGIN, source_address=(source, 0), additional_headers=FORGED)
            )
        except InvalidStatus as refused:
            retry = refused.response.headers.get("Retry-After", "never")
            print(source, refused.response.status_code, retry)
            continue
        ws.recv(timeout=30)
        ws.send('{"msg_id":9002,"seq":1}')
        print(source, json.loads(ws.recv(timeout=30))["payload"]["peer"])

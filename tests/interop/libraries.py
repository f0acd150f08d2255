"""A message and its answer, by a client library for Python, in each form in which it may be called.

usage: libraries.py LIBRARY WS_URL
"""

import asyncio
import json
import sys

LIBRARY, URL = sys.argv[1:]
JSON = "shardgate.v1.json"
QUESTION = json.dumps({"msg_id": 1001, "seq": 1, "payload": LIBRARY})
ANSWER = {"msg_id": 1001, "seq": 1, "payload": LIBRARY}


def same(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


async def aiohttp():
    from aiohttp import ClientSession, ClientTimeout

    async with ClientSession(timeout=ClientTimeout(total=30)) as session:
        for form in {}, {"protocols": []}, {"protocols": [JSON]}, {"compress": 15}:
            ws = await session.ws_connect(URL, **form)
            same(ws.protocol, JSON if form.get("protocols") else None)
            same((await ws.receive_json())["type"], "welcome")
            await ws.send_str(QUESTION)
            same(await ws.receive_json(), ANSWER)
            await ws.close(code=1000)
            same(ws.close_code, 1000)


def websocket_client():
    from websocket import ABNF, create_connection

    # [""] alone is a list that no server can satisfy: this client wants one of it in the answer.
    for form in {}, {"subprotocols": []}, {"subprotocols": ["", JSON]}:
        ws = create_connection(URL, timeout=30, **form)
        same(ws.getsubprotocol(), JSON if form.get("subprotocols") else None)
        same(json.loads(ws.recv())["type"], "welcome")
        ws.send(QUESTION)
        same(json.loads(ws.recv()), ANSWER)
        ws.send_close(1000)
        opcode, data = ws.recv_data(control_frame=True)
        same((opcode, int.from_bytes(data, "big")), (ABNF.OPCODE_CLOSE, 1000))
        ws.shutdown()


async def tornado():
    from tornado.websocket import websocket_connect

    for form in {}, {"subprotocols": []}, {"subprotocols": [JSON]}, {"compression_options": {}}:
        ws = await websocket_connect(URL, connect_timeout=30, **form)
        same(ws.selected_subprotocol, JSON if form.get("subprotocols") else None)
        same(json.loads(await ws.read_message())["type"], "welcome")
        await ws.write_message(QUESTION)
        same(json.loads(await ws.read_message()), ANSWER)
        ws.close(1000)
        same(await ws.read_message(), None)
        same(ws.close_code, 1000)


async def websockets():
    from websockets.asyncio.client import connect

    for form in {}, {"subprotocols": []}, {"subprotocols": [JSON]}, {"compression": None}:
        async with connect(URL, open_timeout=30, **form) as ws:
            same(ws.subprotocol, JSON if form.get("subprotocols") else None)
            same(json.loads(await ws.recv())["type"], "welcome")
            await ws.send(QUESTION)
            same(json.loads(await ws.recv()), ANSWER)
            await ws.close(1000)
            same((ws.close_code, ws.protocol.close_rcvd.code), (1000, 1000))


async def within(seconds, conversation):
    await asyncio.wait_for(conversation(), seconds)


match LIBRARY:
    case "aiohttp":
        asyncio.run(within(30, aiohttp))
    case "websocket-client":
        websocket_client()
    case "tornado":
        asyncio.run(within(30, tornado))
    case "websockets":
        asyncio.run(within(30, websockets))
print("all as it should be")

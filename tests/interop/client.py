"""A conversation in JSON, by the Python package websockets. usage: client.py WS_URL

The package's asyncio client: its other one reads and writes TLS in two threads at once, which the
ssl module of Python 3.11 does not withstand.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

URL = sys.argv[1]


def same(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


async def heard(ws):
    return json.loads(await asyncio.wait_for(ws.recv(), 30))


async def ask(ws, **message):
    await ws.send(json.dumps(message))
    return await heard(ws)


async def converse(ws):
    same(ws.subprotocol, "shardgate.v1.json")
    same(ws.response.headers.get("Sec-WebSocket-Extensions"), None)
    welcome = await heard(ws)
    same(welcome["type"], "welcome")
    assert welcome["payload"]["session"] and welcome["payload"]["heartbeat_ms"] > 0, welcome

    # Every kind of message has its answer.
    same((await ask(ws, type="ping", seq=1))["type"], "pong")
    answer = {"msg_id": 9000, "seq": 2, "payload": [1]}
    same(await ask(ws, msg_id=9000, seq=2, payload=[1]), answer)
    who = (await ask(ws, msg_id=9002, seq=3))["payload"]
    same(who["session"], welcome["payload"]["session"])
    text = {"msg_id": 1001, "seq": 4, "payload": {"text": "h\u00e9llo \U0001f600"}}
    same(await ask(ws, **text), text)
    none = {"msg_id": 2001, "seq": 5, "payload": None}
    same(await ask(ws, **none), none)
    same((await ask(ws, msg_id=3001, seq=6, payload={"fail": 9}))["status"], 9)

    # A refusal says why.
    same((await ask(ws, msg_id=77, seq=7))["reason"], "NO_ROUTE")
    same((await ask(ws, type="dance", seq=8))["reason"], "UNIMPLEMENTED")
    same((await ask(ws, seq=9))["reason"], "BAD_MESSAGE")
    await ws.send("{")
    same((await heard(ws))["reason"], "BAD_MESSAGE")

    # An id is executed once: the second time the stored answer comes, under its own seq.
    buy = {"msg_id": 1001, "id": "buy-1", "key": "k", "payload": {"count": True}}
    count = [await ask(ws, seq=seq, **buy) for seq in (10, 11)]
    same(count[0]["payload"], count[1]["payload"])

    # A message in fragments is one message; many on the way are answered in the order sent.
    await ws.send(iter(['{"msg_id":1001,', '"seq":12,"pay', 'load":"x"}']))
    same(await heard(ws), {"msg_id": 1001, "seq": 12, "payload": "x"})
    for seq in range(100, 200):
        await ws.send(json.dumps({"msg_id": 1001, "seq": seq, "payload": seq}))
    answers = [await heard(ws) for _ in range(100, 200)]
    same([(a["seq"], a["payload"]) for a in answers], [(s, s) for s in range(100, 200)])
    await asyncio.wait_for(await ws.ping(), 30)

    # A message over the cap closes the connection with 1009.
    try:
        await ws.send(json.dumps({"msg_id": 9000, "seq": 300, "payload": "x" * 70_000}))
        await heard(ws)
        raise AssertionError("a message over the cap was taken")
    except ConnectionClosed as closed:
        same(closed.rcvd.code, 1009)


async def main():
    async with connect(URL, subprotocols=["shardgate.v1.json"]) as ws:
        await converse(ws)
    try:
        async with connect(URL, subprotocols=["chat"]):
            raise AssertionError("an unknown subprotocol was taken")
    except InvalidStatus as refused:
        same(refused.response.status_code, 400)
        assert b"shardgate.v1.protobuf" in refused.response.body, refused.response.body


asyncio.run(main())
print("all as it should be")

"""A conversation in JSON, by the Python package websockets. usage: client.py WS_URL"""

import json
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

URL = sys.argv[1]


def same(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


def ask(ws, **message):
    ws.send(json.dumps(message))
    return json.loads(ws.recv(timeout=30))


with connect(URL, subprotocols=["shardgate.v1.json"]) as ws:
    same(ws.subprotocol, "shardgate.v1.json")
    same(ws.response.headers.get("Sec-WebSocket-Extensions"), None)
    welcome = json.loads(ws.recv(timeout=30))
    same(welcome["type"], "welcome")
    assert welcome["payload"]["session"] and welcome["payload"]["heartbeat_ms"] > 0, welcome

    # Every kind of message has its answer.
    same(ask(ws, type="ping", seq=1)["type"], "pong")
    same(ask(ws, msg_id=9000, seq=2, payload=[1]), {"msg_id": 9000, "seq": 2, "payload": [1]})
    who = ask(ws, msg_id=9002, seq=3)["payload"]
    same(who["session"], welcome["payload"]["session"])
    text = {"text": "h\u00e9llo \U0001f600"}
    same(ask(ws, msg_id=1001, seq=4, payload=text), {"msg_id": 1001, "seq": 4, "payload": text})
    same(ask(ws, msg_id=2001, seq=5, payload=None), {"msg_id": 2001, "seq": 5, "payload": None})
    same(ask(ws, msg_id=3001, seq=6, payload={"fail": 9})["status"], 9)

    # A refusal says why.
    same(ask(ws, msg_id=77, seq=7)["reason"], "NO_ROUTE")
    same(ask(ws, type="dance", seq=8)["reason"], "UNIMPLEMENTED")
    same(ask(ws, seq=9)["reason"], "BAD_MESSAGE")
    ws.send("{")
    same(json.loads(ws.recv(timeout=30))["reason"], "BAD_MESSAGE")

    # An id is executed once: the second time the stored answer comes, under its own seq.
    count = [ask(ws, msg_id=1001, seq=s, id="buy-1", key="k", payload={"count": True})
             for s in (10, 11)]
    same(count[0]["payload"], count[1]["payload"])

    # A message in fragments is one message; many on the way are answered in the order sent.
    ws.send(iter(['{"msg_id":1001,', '"seq":12,"pay', 'load":"x"}']))
    same(json.loads(ws.recv(timeout=30)), {"msg_id": 1001, "seq": 12, "payload": "x"})
    for seq in range(100, 200):
        ws.send(json.dumps({"msg_id": 1001, "seq": seq, "payload": seq}))
    answers = [json.loads(ws.recv(timeout=30)) for _ in range(100, 200)]
    same([(a["seq"], a["payload"]) for a in answers], [(s, s) for s in range(100, 200)])
    ws.ping().wait(30)

    # A message over the cap closes the connection with 1009.
    try:
        ws.send(json.dumps({"msg_id": 9000, "seq": 300, "payload": "x" * 70_000}))
        ws.recv(timeout=30)
        raise AssertionError("a message over the cap was taken")
    except ConnectionClosed as closed:
        same(closed.rcvd.code, 1009)

try:
    connect(URL, subprotocols=["chat"]).close()
    raise AssertionError("an unknown subprotocol was taken")
except InvalidStatus as refused:
    same(refused.response.status_code, 400)
    assert b"shardgate.v1.protobuf" in refused.response.body, refused.response.body

print("all as it should be")

"""Pushes by gRPC and HTTP to a client in a group. usage: push.py WS_URL PUSH_HOST:PORT TOKEN

(needs: pip install grpcio grpcio-tools websockets)
"""

import asyncio
import http.client
import importlib
import json
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc
from websockets.asyncio.client import connect

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = "shardgate/push/v1/push.proto"
STUBS = tempfile.TemporaryDirectory()
sys.path.insert(0, STUBS.name)
if protoc.main(["", f"-I{ROOT / 'proto'}", f"--python_out={STUBS.name}",
                f"--grpc_python_out={STUBS.name}", PROTO]) != 0:
    sys.exit("the .proto file does not compile")
pb = importlib.import_module("shardgate.push.v1.push_pb2")
rpc = importlib.import_module("shardgate.push.v1.push_pb2_grpc")

URL, DOORS, TOKEN = sys.argv[1:]
ASKED = {"metadata": [("authorization", f"Bearer {TOKEN}")], "timeout": 30}


def same(got, want):
    assert got == want, f"got {got!r}, want {want!r}"


async def heard(ws):
    return json.loads(await asyncio.wait_for(ws.recv(), 30))


def by_grpc(session):
    pushes = rpc.PushStub(grpc.insecure_channel(DOORS))
    joined = pushes.Join(pb.JoinRequest(sessions=[session], groups=["room:7"]), **ASKED)
    same((joined.joined, joined.offline, joined.positions[0].group), (1, 0, "room:7"))
    room = pb.To(groups=["room:7"])
    first = pb.PushMessage(to=room, msg_id=7001, payload=b'{"by": "grpc"}', id="one",
                           receipt=pb.COUNTED)
    bad = pb.PushMessage(to=pb.To(groups=["hall:1"]), msg_id=7001)
    raw = pb.PushMessage(to=pb.To(sessions=[session]), msg_id=7002, payload=b"\x00\xff",
                         kind=pb.BYTES, receipt=pb.COUNTED)
    results = pushes.Send(pb.SendRequest(pushes=[first, bad, first, raw]), **ASKED).results
    same([r.reason for r in results], ["", "FORBIDDEN", "", ""])
    same([r.counts.addressees for r in results], [1, 0, 0, 1])
    same((results[2].duplicate, results[2].positions[0].position.offset), (True, 1))
    count = pushes.Count(pb.CountRequest(groups=["room:7"]), **ASKED).groups[0]
    same((count.sessions, count.position.offset), (1, 1))
    try:
        pushes.Send(pb.SendRequest(pushes=[first]), timeout=30)
        raise AssertionError("a caller without a token was let in")
    except grpc.RpcError as refused:
        same(refused.code(), grpc.StatusCode.UNAUTHENTICATED)


def post(connection, token, push):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", "/push", json.dumps({"pushes": [push]}), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def by_http():
    connection = http.client.HTTPConnection(DOORS, timeout=30)
    push = {"to": {"groups": ["room:7"]}, "msg_id": 7001, "payload": {"by": "http"},
            "receipt": "COUNTED"}
    same(post(connection, "token-of-nobody-0123", push)[0], 401)
    socket = connection.sock
    status, answer = post(connection, TOKEN, push)
    same((status, answer["results"][0]["counts"]["addressees"]), (200, 1))
    assert connection.sock is socket is not None, "the connection was not kept"


async def main():
    async with connect(URL) as ws:
        session = (await heard(ws))["payload"]["session"]
        await asyncio.to_thread(by_grpc, session)
        joined = await heard(ws)
        same((joined["type"], joined["payload"]["group"]), ("joined", "room:7"))
        # Between a group's pushes and those to a session there is no order.
        pushes = {push["msg_id"]: push for push in [await heard(ws), await heard(ws)]}
        same(pushes[7001]["payload"], {"by": "grpc"})
        same((pushes[7001]["group"], pushes[7001]["offset"]), ("room:7", 1))
        same(pushes[7002]["payload_base64"], "AP8=")
        await asyncio.to_thread(by_http)
        push = await heard(ws)
        same((push["payload"], push["offset"]), ({"by": "http"}, 2))


asyncio.run(main())
print("all as it should be")

"""A service in Python: implements shardgate.backend.v1.Backend with grpcio.

usage: backend.py HOST:PORT    (needs: pip install grpcio grpcio-tools)

It echoes each payload. {"hang": true} is never answered, {"fail": n} gets status n, and
{"who": true} returns the metadata that came with the message.
"""

import importlib
import json
import pathlib
import signal
import sys
import tempfile
import threading
from concurrent import futures

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = ["shardgate/backend/v1/backend.proto", "shardgate/push/v1/push.proto"]
STUBS = tempfile.TemporaryDirectory()
sys.path.insert(0, STUBS.name)
if protoc.main(["", f"-I{ROOT / 'proto'}", f"--python_out={STUBS.name}",
                f"--grpc_python_out={STUBS.name}", *PROTO]) != 0:
    sys.exit("the .proto file does not compile")
pb = importlib.import_module("shardgate.backend.v1.backend_pb2")
rpc = importlib.import_module("shardgate.backend.v1.backend_pb2_grpc")


class Backend(rpc.BackendServicer):
    def Handle(self, batch, context):
        return pb.BatchResponse(responses=[self.answer(batch, r) for r in batch.requests])

    def answer(self, batch, request):
        try:
            ask = json.loads(request.payload)
        except ValueError:
            ask = None
        if not isinstance(ask, dict):
            ask = {}
        if ask.get("hang"):
            print("hanging", flush=True)
            threading.Event().wait()
        if ask.get("who"):
            told = {
                "gateway": batch.gateway,
                "msg_id": request.msg_id,
                "seq": request.seq,
                "session": request.session,
                "priority": pb.Priority.Name(request.priority),
                "timeout_ms": request.timeout_ms,
                "attempt": request.attempt,
                "encoding": pb.Encoding.Name(request.encoding),
            }
            return pb.BaseResponse(request_id=request.request_id,
                                   payload=json.dumps(told).encode())
        return pb.BaseResponse(request_id=request.request_id, status=ask.get("fail", 0),
                               payload=request.payload)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16),
                     options=[("grpc.so_reuseport", 0)])
rpc.add_BackendServicer_to_server(Backend(), server)
server.add_insecure_port(sys.argv[1])
server.start()
signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
print(f"service ready: {sys.argv[1]}", flush=True)
server.wait_for_termination()

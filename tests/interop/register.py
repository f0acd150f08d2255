"""Registers an instance with shardgate until SIGTERM: copy it into a service.

usage: SHARDGATE_TOKEN=... register.py GATEWAY SERVICE INSTANCE ADDRESS
       e.g. register.py 127.0.0.1:8001 logic logic-1 10.0.0.7:50001
(needs: pip install grpcio grpcio-tools; over TLS: grpc.secure_channel with the gateway's CA)
"""

import importlib
import os
import pathlib
import signal
import sys
import tempfile
import threading

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = "shardgate/registry/v1/registry.proto"
STUBS = tempfile.TemporaryDirectory()
sys.path.insert(0, STUBS.name)
if protoc.main(["", f"-I{ROOT / 'proto'}", f"--python_out={STUBS.name}",
                f"--grpc_python_out={STUBS.name}", PROTO]) != 0:
    sys.exit("the .proto file does not compile")
pb = importlib.import_module("shardgate.registry.v1.registry_pb2")
rpc = importlib.import_module("shardgate.registry.v1.registry_pb2_grpc")

gateway, service, instance, address = sys.argv[1:]
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
asked = {"metadata": [("authorization", f"Bearer {os.environ['SHARDGATE_TOKEN']}")], "timeout": 5}
registry = rpc.RegistryStub(grpc.insecure_channel(gateway))
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())

held, pause = None, 0
while not end.wait(pause):
    try:
        if held is None:
            held = registry.Register(pb.RegisterRequest(
                service=service, instance=instance, address=address, ttl_ms=3000), **asked)
            print(f"registered: {held.ttl_ms} ms", flush=True)
        else:
            registry.Heartbeat(pb.HeartbeatRequest(lease=held.lease), **asked)
        pause = held.heartbeat_ms / 1000
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            held, pause = None, 0  # it ran out, or the gateway was restarted: register again
        elif error.code() in AGAIN:
            pause = 1  # the gateway is away: it keeps sending messages meanwhile
        else:
            sys.exit(f"{error.code().name}: {error.details()}")
if held is not None:
    try:
        registry.Deregister(pb.DeregisterRequest(lease=held.lease), **asked)
    except grpc.RpcError as error:
        print(f"the lease runs out by itself: {error.code().name}", file=sys.stderr)

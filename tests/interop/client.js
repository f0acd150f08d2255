// A conversation in both subprotocols, by the Node package ws. usage: node client.js WS_URL
// The protobuf messages are put together and taken apart by hand here, so that they are checked
// against the numbers in client.proto, not against the gateway's own generated code.
"use strict";
const assert = require("node:assert");
const { once } = require("node:events");
const WebSocket = require("ws");

const url = process.argv[2];

function varint(n) {
  const bytes = [];
  for (n = BigInt(n); n > 127n; n >>= 7n) bytes.push(Number((n & 127n) | 128n));
  return [...bytes, Number(n)];
}

// ClientMessage: msg_id 1, seq 2, type 3, payload 4.
function encode({ msg_id, seq, type, payload }) {
  const out = [];
  if (msg_id) out.push(1 << 3, ...varint(msg_id));
  if (seq) out.push(2 << 3, ...varint(seq));
  for (const [field, value] of [[3, type], [4, payload]]) {
    if (value) out.push((field << 3) | 2, ...varint(value.length), ...Buffer.from(value));
  }
  return Buffer.from(out);
}

// Fields by number: bigint or Buffer.
function decode(buffer) {
  const fields = {};
  let at = 0;
  const number = () => {
    let n = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = buffer[at++];
      n |= BigInt(byte & 127) << shift;
      if (byte < 128) return n;
    }
  };
  while (at < buffer.length) {
    const tag = number();
    if ((tag & 7n) === 0n) {
      fields[tag >> 3n] = number();
    } else {
      assert.strictEqual(tag & 7n, 2n, "only varints and bytes are in client.proto");
      const length = Number(number());
      fields[tag >> 3n] = buffer.subarray(at, at + length);
      at += length;
    }
  }
  return fields;
}

async function open(subprotocol) {
  const ws = new WebSocket(url, subprotocol);
  const waiting = [];
  const readers = [];
  ws.on("message", (data, binary) => {
    const message = { data, binary };
    if (readers.length > 0) readers.shift()(message);
    else waiting.push(message);
  });
  ws.next = () =>
    waiting.length > 0 ? Promise.resolve(waiting.shift()) : new Promise((r) => readers.push(r));
  await once(ws, "open");
  assert.strictEqual(ws.protocol, subprotocol);
  return ws;
}

async function close(ws) {
  ws.close(1000);
  const [code] = await once(ws, "close");
  assert.strictEqual(code, 1000);
}

async function json() {
  const ws = await open("shardgate.v1.json");
  const next = async () => {
    const { data, binary } = await ws.next();
    assert.strictEqual(binary, false);
    return JSON.parse(data);
  };
  assert.strictEqual((await next()).type, "welcome");
  ws.send('{"msg_id":1001,"seq":9007199254740991,"payload":{"text":"hello"}}');
  const answer = { msg_id: 1001, seq: Number.MAX_SAFE_INTEGER, payload: { text: "hello" } };
  assert.deepStrictEqual(await next(), answer);
  ws.send('{"msg_id":1,"seq":9007199254740992}');
  assert.strictEqual((await next()).reason, "BAD_MESSAGE");
  await close(ws);
}

async function protobuf() {
  const ws = await open("shardgate.v1.protobuf");
  const next = async () => {
    const { data, binary } = await ws.next();
    assert.strictEqual(binary, true);
    return decode(data);
  };
  const welcome = await next();
  assert.strictEqual(String(welcome[3]), "welcome");
  assert.ok(decode(welcome[4])[1].length > 0, "Welcome.session");
  const payload = Buffer.from([0, 255, 10, 128]);
  ws.send(encode({ msg_id: 1001, seq: 300, payload }));
  assert.deepStrictEqual(await next(), { 1: 1001n, 2: 300n, 4: payload });
  ws.send(encode({ seq: 301, type: "ping" }));
  const pong = await next();
  assert.strictEqual(String(pong[3]), "pong");
  assert.ok(decode(pong[4])[1] > 1_600_000_000_000n, "Pong.unix_ms");
  ws.send(encode({ msg_id: 77, seq: 302 }));
  const refused = await next();
  assert.deepStrictEqual([refused[2], refused[5], String(refused[7])], [302n, 5n, "NO_ROUTE"]);
  await close(ws);
}

setTimeout(() => assert.fail("no answer in 30 s"), 30_000).unref();
json().then(protobuf).then(() => console.log("all as it should be"));

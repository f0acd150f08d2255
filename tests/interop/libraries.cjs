// A message and its answer, by the WebSocket of a package or of the runtime itself, in each form in
// which it may be called. usage: node|bun|deno libraries.cjs PACKAGE|global WS_URL
"use strict";
const assert = require("node:assert");
const process = require("node:process");

const [from, url] = process.argv.slice(2);
const WebSocket = from === "global" ? globalThis.WebSocket : require(from).WebSocket;
const json = "shardgate.v1.json";

async function converse(...form) {
  const ws = new WebSocket(url, ...form);
  const waiting = [];
  const readers = [];
  ws.onmessage = ({ data }) => {
    if (readers.length > 0) readers.shift()(JSON.parse(data));
    else waiting.push(JSON.parse(data));
  };
  const next = () =>
    waiting.length > 0 ? Promise.resolve(waiting.shift()) : new Promise((r) => readers.push(r));
  await new Promise((opened, failed) => Object.assign(ws, { onopen: opened, onerror: failed }));
  assert.strictEqual(ws.protocol, String(form).includes(json) ? json : "");
  assert.strictEqual(ws.extensions, "");
  assert.strictEqual((await next()).type, "welcome");
  ws.send(JSON.stringify({ msg_id: 1001, seq: 1, payload: from }));
  assert.deepStrictEqual(await next(), { msg_id: 1001, seq: 1, payload: from });
  const closed = new Promise((resolve) => { ws.onclose = resolve; });
  ws.close(1000);
  const { code, wasClean } = await closed;
  assert.deepStrictEqual([code, wasClean], [1000, true]);
}

async function all() {
  for (const form of [[], [[]], [json], [["chat", json]]]) await converse(...form);
  console.log("all as it should be");
}

const late = setTimeout(() => assert.fail("no answer in 30 s"), 30_000);
all().finally(() => clearTimeout(late));

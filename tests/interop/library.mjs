// The client library, one group of cases a run.
// usage: node library.mjs GROUP WS_URL [only=CASE] [NAME=VALUE…]
// The group `alone` needs no gateway: its cases play one themselves, with a clock of their own.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { Gateway, GatewayError } from "../../src/control/page/shardgate.js";

const [group, url, ...given] = process.argv.slice(2);
const args = Object.fromEntries(given.map((arg) => arg.split(/=(.*)/s).slice(0, 2)));
// Node before 22 has it in a package only: its own is that of undici.
const WebSocket = globalThis.WebSocket ?? createRequire(import.meta.url)("undici").WebSocket;
const library = new URL("../../src/control/page/", import.meta.url);

/** Waits until something holds. */
async function until(what, holds) {
  for (const end = Date.now() + 30_000; !(await holds()); await later(5)) {
    assert.ok(Date.now() < end, `it never came true that ${what}`);
  }
}
const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const event = (gate, name) => new Promise((resolve) => gate.on(name, resolve));
const rejected = (promise) => promise.then((value) => assert.fail(`it gave ${value}`), (e) => e);
/** Checks that a request was rejected with these fields. */
async function refused(promise, fields) {
  const error = await rejected(promise);
  assert.ok(error instanceof GatewayError, error.stack);
  const got = Object.fromEntries(Object.keys(fields).map((name) => [name, error[name]]));
  assert.deepEqual(got, fields);
}
/** Numbers from 0 to 1, the same ones for a seed. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
const counts = (from, to) => Array.from({ length: to - from + 1 }, (_, n) => from + n);

// ---- A gateway that is played.

const real = { setTimeout, clearTimeout, random: Math.random };

/** Time that passes only when it is told to. */
class Clock {
  ms = 1_000;
  #timers = new Map();
  #id = 0;

  install() {
    globalThis.setTimeout = (action, ms = 0) => {
      this.#timers.set(++this.#id, { at: this.ms + Math.max(0, ms), action });
      return this.#id;
    };
    globalThis.clearTimeout = (id) => void this.#timers.delete(id);
    Object.defineProperty(performance, "now", { value: () => this.ms, configurable: true });
  }

  remove() {
    Object.assign(globalThis, { setTimeout: real.setTimeout, clearTimeout: real.clearTimeout });
    delete performance.now;
    Math.random = real.random;
  }

  async pass(ms) {
    const end = this.ms + ms;
    await settled();
    for (let next; (next = this.#next(end)); await settled()) {
      this.ms = Math.max(this.ms, next.at);
      next.action();
    }
    this.ms = end;
  }

  #next(end) {
    const due = [...this.#timers].filter(([, timer]) => timer.at <= end);
    due.sort(([a, x], [b, y]) => x.at - y.at || a - b);
    if (due.length) this.#timers.delete(due[0][0]);
    return due[0]?.[1];
  }
}

/** Lets all promises settle that can. */
async function settled() {
  for (let n = 0; n < 50; n++) await null;
}

/** The gateway's side of one connection. */
class Socket {
  sent = [];

  constructor(url, protocols) {
    assert.deepEqual([url, protocols], ["ws://played/ws", ["shardgate.v1.json"]]);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closedWith = code;
  }

  says(...messages) {
    for (const message of messages) this.onmessage({ data: JSON.stringify(message) });
  }

  /** Takes what was sent since the last time. */
  took() {
    return this.sent.splice(0).map(({ deadline_ms, ...message }) => message);
  }

  /** Accepts the connection; returns what it asks first. */
  opens(limits) {
    this.onopen({});
    this.says({ type: "welcome", payload: welcome(limits) });
    return this.took();
  }

  /** The whole beginning, up to a session that can be resumed. */
  async begins({ limits, ...resumed } = {}) {
    const first = this.opens(limits);
    if (first[0].type === "auth") this.says({ type: "auth_ok", seq: 1, payload: ALICE });
    const payload = { ...RESUMED, secret: `secret-${++secrets}`, ...resumed };
    this.says({ type: "resumed", seq: 2, payload });
    await settled();
    return first.at(-1).payload;
  }

  ends(code, reason = "") {
    this.onclose({ code, reason });
  }
}

let secrets = 0;
const ALICE = { user: "alice", tenant: "", expires_unix_s: 2_000_000_000, session: "s-1" };
const RESUMED = { session: "s-1", outcome: "new", received_seq: 2, offset: 0, ttl_ms: 60_000 };
const welcome = (limits) => ({
  session: "s-0", node: "n", shard: 3, heartbeat_ms: 30_000, boot: "b-1",
  limits: { message_bytes_max: 65_536, unanswered_max: 32, messages_per_s_max: 0, ...limits },
});
const REFUSES_RESUME = { type: "error", seq: 2, status: 12, reason: "UNIMPLEMENTED" };

/** A gate to a played gateway: its sockets, its events, and the clock. */
function play(options = {}) {
  const sockets = [];
  class Played extends Socket {
    constructor(...form) {
      super(...form);
      sockets.push(this);
    }
  }
  const network = Object.assign(new EventTarget(), { document: new EventTarget() });
  network.document.visibilityState = "visible";
  const gate = new Gateway("ws://played/ws", { WebSocket: Played, network, ...options });
  const seen = [];
  for (const name of ["state", "resumed", "gap", "lost", "draining", "error", "message"]) {
    gate.on(name, (what) => void seen.push([name, what]));
  }
  const tells = (name) => seen.filter(([found]) => found === name).map(([, what]) => what);
  const happens = (name) => network.dispatchEvent(new Event(name));
  const shows = (visibilityState) => {
    network.document.visibilityState = visibilityState;
    network.document.dispatchEvent(new Event("visibilitychange"));
  };
  return { gate, sockets, tells, happens, shows };
}

/** The same, opened, and with a session. */
async function playOpen(options, resumed) {
  const played = play(options);
  played.gate.open();
  await settled();
  await played.sockets[0].begins(resumed);
  played.sockets[0].took();
  return played;
}

const alone = {
  async nothing_is_sent_before_the_session_is_resumable(clock) {
    const { gate, sockets } = play({ token: () => "t" });
    const answer = gate.request(1001, { n: 1 }, { timeoutMs: 2_000 });
    const opened = gate.open();
    assert.equal(gate.open(), opened);
    await settled();
    const [socket] = sockets;
    assert.deepEqual(socket.opens(), [
      { type: "auth", seq: 1, payload: { token: "t" } },
      { type: "resume", seq: 2, payload: {} },
    ]);
    socket.says({ type: "auth_ok", seq: 1, payload: ALICE });
    assert.deepEqual([socket.took(), gate.state], [[], "connecting"]);
    await clock.pass(500);
    socket.says({ type: "resumed", seq: 2, payload: { ...RESUMED, secret: "x" } });
    const message = { msg_id: 1001, seq: 3, deadline_ms: 1_500, payload: { n: 1 } };
    assert.deepEqual(socket.sent, [message]);
    await opened;
    assert.equal(gate.state, "open");
    socket.says({ msg_id: 1001, seq: 3, payload: "done", offset: 1 });
    assert.equal(await answer, "done");
    assert.deepEqual(gate.session, {
      id: "s-1", user: "alice", tenant: "", expiresUnixS: 2_000_000_000, node: "n", shard: 3,
      isResumable: true, ttlMs: 60_000,
    });
  },

  async a_gateway_that_resumes_nothing_is_used_all_the_same() {
    const { gate, sockets, tells } = play();
    gate.open();
    const kept = gate.request(1001, 1, { id: "buy-1" });
    const lost = gate.request(1001, 2);
    await settled();
    assert.deepEqual(sockets[0].opens(), [{ type: "resume", seq: 2, payload: {} }]);
    sockets[0].says(REFUSES_RESUME);
    assert.equal(gate.state, "open");
    assert.equal(gate.session.isResumable, false);
    assert.deepEqual(sockets[0].took().map(({ seq }) => seq), [3, 4]);
    sockets[0].ends(1006);
    await refused(lost, { reason: "LOST", maybeRan: true });
    gate.close();
    await refused(kept, { reason: "CLOSED", maybeRan: true });
    assert.deepEqual(tells("error"), []);
    assert.deepEqual(tells("lost"), []);
  },

  async what_the_gateway_had_not_read_is_sent_again_with_its_seq(clock) {
    const { gate, sockets, tells } = await playOpen();
    const answers = [1, 2, 3, 4].map((n) => gate.request(1001, n));
    sockets[0].says({ msg_id: 1001, seq: 3, payload: 1, offset: 1 });
    sockets[0].ends(1006);
    const after = gate.request(1001, 5);
    await clock.pass(500);
    const position = await sockets[1].begins({ outcome: "resumed", received_seq: 4, offset: 2 });
    const secret = `secret-${secrets - 1}`;
    assert.deepEqual(position, { session: "s-1", secret, boot: "b-1", offset: 1 });
    assert.deepEqual(sockets[1].took(), [
      { msg_id: 1001, seq: 5, payload: 3, ack: 1 },
      { msg_id: 1001, seq: 6, payload: 4 },
      { msg_id: 1001, seq: 7, payload: 5 },
    ]);
    sockets[1].says(...[4, 5, 6, 7].map((seq) => ({ seq, payload: seq - 2, offset: seq - 2 })));
    assert.deepEqual(await Promise.all([...answers, after]), [1, 2, 3, 4, 5]);
    assert.deepEqual(tells("resumed"), [{ session: "s-1", reason: "" }]);
    // Each time a new secret.
    sockets[1].ends(4002);
    await clock.pass(1_000);
    assert.equal((await sockets[2].begins()).secret, `secret-${secrets - 1}`);
  },

  async after_lost_only_what_has_an_id_is_sent_again(clock) {
    const { gate, sockets, tells } = await playOpen();
    sockets[0].says({ type: "news", offset: 7 });
    const plain = gate.request(1001, 1);
    const named = gate.request(1001, 2, { id: "buy-2" });
    gate.send(1001, "one-way");
    sockets[0].ends(1006);
    const queued = gate.request(1001, 3);
    await clock.pass(500);
    const lost = { outcome: "lost", reason: "RESTARTED", session: "s-9" };
    assert.equal((await sockets[1].begins(lost)).offset, 7);
    await refused(plain, { reason: "LOST", status: 2, maybeRan: true });
    const [again, next] = sockets[1].took();
    assert.deepEqual([again.id, again.payload, next.payload], ["buy-2", 2, 3]);
    assert.ok(again.seq > 2 && next.seq === again.seq + 1);
    assert.deepEqual(tells("lost"), [{ session: "s-9", reason: "RESTARTED" }]);
    assert.equal(gate.session.id, "s-9");
    // The offsets are those of the new session.
    sockets[1].says({ seq: again.seq, payload: "a", offset: 1 }, { seq: next.seq, offset: 2 });
    assert.deepEqual([await named, await queued], ["a", undefined]);
  },

  async after_a_gap_an_answer_may_be_missing(clock) {
    const { gate, sockets, tells } = await playOpen();
    const answers = [1, 2].map((n) => gate.request(1001, n, { timeoutMs: 3_000 }));
    sockets[0].ends(1006);
    await clock.pass(500);
    const gap = { outcome: "gap", reason: "OVERFLOW", received_seq: 4, offset: 9 };
    await sockets[1].begins(gap);
    sockets[1].says({ seq: 4, payload: "late", offset: 9 });
    assert.equal(await answers[1], "late");
    assert.deepEqual(tells("gap"), [{ session: "s-1", reason: "OVERFLOW" }]);
    await clock.pass(3_000);
    await refused(answers[0], { reason: "TIMEOUT", status: 4, maybeRan: true });
  },

  async what_comes_twice_is_told_once(clock) {
    const { sockets, tells } = await playOpen();
    const news = counts(1, 3).map((n) => ({ type: "news", msg_id: 7, payload: n, offset: n }));
    sockets[0].says(news[0], news[1], news[1]);
    sockets[0].ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "resumed", offset: 3 });
    sockets[1].says(...news);
    sockets[0].says({ type: "news", payload: "from the old connection" });
    const told = (n) => ({ type: "news", msgId: 7, payload: n, offset: n });
    assert.deepEqual(tells("message"), [1, 2, 3].map(told));
  },

  async offsets_are_acked_when_they_are_done_with(clock) {
    const { gate, sockets } = await playOpen();
    const [socket] = sockets;
    let done;
    const off = gate.on("message", () => new Promise((resolve) => (done = resolve)));
    socket.says({ type: "news", offset: 1 });
    off();
    socket.says({ type: "news", offset: 2 });
    gate.send(1001, 1);
    await clock.pass(5_000);
    assert.deepEqual(socket.took(), [{ msg_id: 1001, payload: 1 }]);
    done();
    await clock.pass(999);
    assert.deepEqual(socket.took(), []);
    await clock.pass(1);
    assert.deepEqual(socket.took(), [{ type: "heartbeat", ack: 2 }]);
    socket.says({ type: "news", offset: 3 });
    gate.send(1001, 2);
    gate.send(1001, 3);
    await clock.pass(5_000);
    const sent = [{ msg_id: 1001, ack: 3, payload: 2 }, { msg_id: 1001, payload: 3 }];
    assert.deepEqual(socket.took(), sent);
    // A resume with nothing missed is confirmed as well: the old secret is given up by it.
    socket.ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "resumed", offset: 3 });
    await clock.pass(1_000);
    assert.deepEqual(sockets[1].took(), [{ type: "heartbeat", ack: 3 }]);
  },

  async a_session_that_another_connection_took_is_left_to_it(clock) {
    const { gate, sockets, tells } = await playOpen();
    const answer = gate.request(1001);
    sockets[0].ends(4000);
    await refused(answer, { reason: "LOST", maybeRan: true });
    await clock.pass(500);
    assert.deepEqual(await sockets[1].begins({ session: "s-2" }), {});
    assert.deepEqual(tells("lost"), [{ session: "s-2", reason: "REPLACED" }]);
    assert.equal(gate.state, "open");
  },

  async close_codes_say_whether_to_come_back(clock) {
    for (const code of [1001, 1006, 1008, 1009, 1011, 1012, 1013, 3000, 4001, 4002, 4005, 4499]) {
      const { gate, sockets } = await playOpen();
      sockets[0].ends(code);
      assert.equal(gate.state, "away", code);
      await clock.pass(500);
      assert.equal(sockets.length, 2, code);
      gate.close();
    }
    for (const code of [1000, 4500, 4501, 4502, 4999]) {
      const { gate, sockets, tells } = await playOpen();
      const answer = gate.request(1001);
      sockets[0].ends(code, "why");
      await refused(answer, { reason: "CLOSED", maybeRan: true });
      await clock.pass(60_000);
      assert.deepEqual([gate.state, sockets.length], ["closed", 1], code);
      assert.deepEqual(tells("error").map((error) => error.code), [code]);
      await refused(gate.request(1001), { reason: "CLOSED", maybeRan: false });
      assert.equal(gate.send(1001), false);
    }
  },

  async close_says_goodbye(clock) {
    const { gate, sockets, tells } = await playOpen();
    gate.close();
    gate.close();
    await clock.pass(60_000);
    assert.deepEqual([sockets[0].closedWith, sockets.length], [1000, 1]);
    assert.deepEqual([tells("state"), tells("error")], [["connecting", "open", "closed"], []]);
    const opened = gate.open();
    await settled();
    assert.deepEqual(await sockets[1].begins(), {});
    await opened;
  },

  async a_token_is_asked_for_once_each_time_it_is_no_good(clock) {
    const asked = [];
    const token = async (why) => `token-${asked.push(why)}`;
    const { gate, sockets } = await playOpen({ token });
    sockets[0].ends(1006);
    await clock.pass(500);
    assert.equal(sockets[1].opens()[0].payload.token, "token-1");
    sockets[1].ends(4004);
    await clock.pass(1_000);
    assert.equal(sockets[2].opens()[0].payload.token, "token-2");
    sockets[2].ends(4500);
    await clock.pass(2_000);
    assert.equal(sockets[3].opens()[0].payload.token, "token-3");
    sockets[3].says({ type: "auth_ok", seq: 1, payload: ALICE });
    sockets[3].says({ type: "resumed", seq: 2, payload: RESUMED });
    // A good one in between: the next refusal is the first one again.
    sockets[3].ends(4500);
    await clock.pass(4_000);
    sockets[4].opens();
    sockets[4].ends(4500, "still bad");
    await clock.pass(60_000);
    assert.deepEqual([gate.state, sockets.length], ["closed", 5]);
    assert.deepEqual(asked, ["first", "expired", "bad", "bad"]);
  },

  async a_gate_without_a_token_to_give_is_closed() {
    const { gate, sockets } = play({ token: async () => assert.fail("no login") });
    await refused(gate.open(), { reason: "CLOSED", message: "cannot connect: no login" });
    assert.deepEqual([gate.state, sockets.length], ["closed", 0]);
    for (const code of [4004, 4500]) {
      const { gate, sockets } = await playOpen({ token: "text" });
      sockets[0].ends(code);
      assert.equal(gate.state, "closed");
    }
  },

  async a_token_that_cannot_be_verified_now_is_shown_again(clock) {
    const { gate, sockets } = play({ token: "t" });
    gate.open();
    await settled();
    sockets[0].opens();
    const busy = { status: 14, reason: "UNAVAILABLE", retry_after_ms: 3_000 };
    sockets[0].says({ type: "error", seq: 1, ...busy }, { type: "error", seq: 2, status: 16 });
    assert.deepEqual([sockets[0].closedWith, gate.state], [4900, "away"]);
    await clock.pass(2_999);
    assert.equal(sockets.length, 1);
    await clock.pass(1);
    // Refused for good: the close code decides, and nothing else is heard.
    sockets[1].opens();
    sockets[1].says({ type: "error", seq: 1, status: 16, reason: "UNAUTHENTICATED" });
    sockets[1].says({ type: "resumed", seq: 2, payload: { ...RESUMED, outcome: "lost" } });
    assert.equal(gate.state, "connecting");
    sockets[1].ends(4500);
    assert.equal(gate.state, "closed");
  },

  async pauses_are_random_below_a_cap_that_doubles(clock) {
    const { sockets } = await playOpen({ reconnect: { minMs: 100, maxMs: 1_000 } });
    Math.random = () => 0.5;
    for (const ms of [50, 100, 200, 400, 500, 500]) {
      sockets.at(-1).ends(1006);
      const tries = sockets.length;
      await clock.pass(ms - 1);
      assert.equal(sockets.length, tries, ms);
      await clock.pass(1);
      assert.equal(sockets.length, tries + 1, ms);
    }
    // Only a connection that lasts makes the pauses short again.
    await sockets.at(-1).begins();
    await clock.pass(9_999);
    sockets.at(-1).ends(1006);
    await clock.pass(499);
    assert.equal(sockets.length, 7);
    await clock.pass(1);
    await sockets.at(-1).begins();
    await clock.pass(10_000);
    sockets.at(-1).ends(1006);
    await clock.pass(50);
    assert.equal(sockets.length, 9);
  },

  async the_gateway_can_make_a_pause_longer(clock) {
    const { gate, sockets, tells } = await playOpen();
    const before = gate.request(1001, "before");
    sockets[0].says({ type: "draining", payload: { reconnect_after_ms: 5_000 } });
    assert.deepEqual(tells("draining"), [{ reconnectAfterMs: 5_000 }]);
    const after = gate.request(1001, "after", { timeoutMs: 20_000 });
    assert.deepEqual(sockets[0].took().map(({ payload }) => payload), ["before"]);
    sockets[0].says({ seq: 3, payload: "in time", offset: 1 });
    assert.equal(await before, "in time");
    sockets[0].ends(1001);
    await clock.pass(4_999);
    assert.equal(sockets.length, 1);
    await clock.pass(1);
    sockets[1].onopen({});
    const full = { status: 8, reason: "RATE_LIMITED", retry_after_ms: 7_000 };
    sockets[1].says({ type: "error", ...full });
    sockets[1].ends(1013);
    await clock.pass(6_999);
    assert.equal(sockets.length, 2);
    await clock.pass(1);
    await sockets[2].begins();
    sockets[2].says({ seq: sockets[2].took()[0].seq, payload: "here", offset: 2 });
    assert.equal(await after, "here");
  },

  async the_network_and_the_reader_end_a_pause(clock) {
    Math.random = () => 1;
    const { gate, sockets, happens, shows } = await playOpen({ reconnect: { minMs: 20_000 } });
    sockets[0].ends(1006);
    happens("online");
    await clock.pass(0);
    assert.equal(sockets.length, 2);
    sockets[1].ends(1006);
    shows("hidden");
    await clock.pass(0);
    assert.equal(sockets.length, 2);
    shows("visible");
    await clock.pass(0);
    await sockets[2].begins();
    happens("offline");
    assert.deepEqual([gate.state, sockets[2].closedWith], ["away", 4900]);
    shows("visible");
    await clock.pass(600_000);
    assert.equal(sockets.length, 3);
    happens("online");
    await clock.pass(0);
    assert.equal(sockets.length, 4);
    gate.close();
    happens("online");
    await clock.pass(600_000);
    assert.equal(sockets.length, 4);
  },

  async silence_is_asked_about_before_a_connection_is_cut(clock) {
    const { gate, sockets } = await playOpen();
    await clock.pass(44_999);
    assert.deepEqual(sockets[0].took(), []);
    await clock.pass(1);
    const [ping] = sockets[0].took();
    assert.deepEqual(ping, { type: "ping", seq: 3 });
    await clock.pass(4_999);
    sockets[0].says({ type: "pong", seq: 3, payload: { unix_ms: 1 } });
    await clock.pass(45_000);
    assert.deepEqual(sockets[0].took(), [{ type: "ping", seq: 4 }]);
    await clock.pass(4_999);
    assert.equal(gate.state, "open");
    await clock.pass(1);
    assert.deepEqual([gate.state, sockets[0].closedWith], ["away", 4900]);
  },

  async a_request_that_times_out_in_silence_is_asked_about(clock) {
    const { gate, sockets } = await playOpen();
    await clock.pass(1);
    const answers = [gate.request(1001, 1), gate.request(1001, 2)].map(rejected);
    sockets[0].took();
    await clock.pass(5_000);
    assert.deepEqual(sockets[0].took(), [{ type: "ping", seq: 5 }]);
    sockets[0].says({ type: "pong", seq: 5 });
    // A service that is slow says nothing of the gateway.
    answers.push(rejected(gate.request(1001, 3)));
    sockets[0].says({ type: "news" });
    await clock.pass(5_000);
    assert.deepEqual(sockets[0].took().map(({ type }) => type), [undefined]);
    answers.push(rejected(gate.request(1001, 4, { timeoutMs: 1_000 })));
    await clock.pass(6_000);
    assert.equal(gate.state, "away");
    assert.deepEqual(new Set((await Promise.all(answers)).map((e) => e.reason)), new Set(["TIMEOUT"]));
  },

  async a_hidden_page_is_not_cut_off_and_asks_when_it_is_seen(clock) {
    const { gate, sockets, shows } = await playOpen();
    shows("hidden");
    await clock.pass(600_000);
    assert.deepEqual([gate.state, sockets[0].took()], ["open", []]);
    shows("visible");
    assert.deepEqual(sockets[0].took(), [{ type: "ping", seq: 3 }]);
    shows("hidden");
    await clock.pass(60_000);
    assert.equal(gate.state, "open");
    shows("visible");
    await clock.pass(5_000);
    assert.equal(gate.state, "away");
  },

  async a_connection_that_gets_no_session_is_tried_again(clock) {
    const { gate, sockets } = play();
    gate.open();
    await settled();
    sockets[0].opens();
    await clock.pass(9_999);
    assert.equal(gate.state, "connecting");
    await clock.pass(1);
    assert.deepEqual([gate.state, sockets[0].closedWith], ["away", 4900]);
    await clock.pass(500);
    sockets[1].onerror({});
    await clock.pass(0);
    assert.equal(gate.state, "away");
  },

  async the_queue_has_bounds_and_keeps_the_order(clock) {
    const { gate, sockets } = play({ queue: { items: 3, bytes: 100, maxAgeMs: 1_000 } });
    const now = [gate.request(1001, 1), gate.request(1001, 2, { timeoutMs: 400 })];
    assert.equal(gate.send(1001, "dropped", { volatile: true }), false);
    assert.equal(gate.send(1001, "old"), true);
    await refused(gate.request(1001, 4), { reason: "QUEUE_FULL", status: 8, maybeRan: false });
    assert.equal(gate.send(1001, 4), false);
    await clock.pass(400);
    await refused(now[1], { reason: "TIMEOUT", maybeRan: false });
    await refused(gate.request(1001, "ä".repeat(50)), { reason: "QUEUE_FULL" });
    await clock.pass(600);
    await refused(now[0], { reason: "EXPIRED", status: 4, maybeRan: false });
    await clock.pass(1);
    const late = [1, 2].map((n) => gate.request(1001, n));
    assert.equal(gate.send(1001, 3), true);
    late.push(gate.request(1001, 4).catch((error) => error.reason));
    gate.open();
    await settled();
    await sockets[0].begins();
    assert.deepEqual(sockets[0].took().map(({ payload }) => payload), [1, 2, 3]);
    assert.equal(await late[2], "QUEUE_FULL");
  },

  async a_network_that_takes_nothing_is_not_fed() {
    const { gate, sockets } = await playOpen({ queue: { bytes: 1_000 } });
    sockets[0].bufferedAmount = 1_000;
    assert.equal(gate.send(1001, 1, { volatile: true }), true);
    sockets[0].bufferedAmount = 1_001;
    assert.equal(gate.send(1001, 2), false);
    gate.request(1001, 3).catch(() => {});
    assert.deepEqual(sockets[0].took().map(({ payload }) => payload), [1, 3]);
  },

  async never_more_are_in_flight_than_the_gateway_takes() {
    const limits = { unanswered_max: 5 };
    const { gate, sockets } = await playOpen({ queue: { items: 1_000 } }, { limits });
    const answers = counts(1, 100).map((n) => gate.request(1001, n));
    for (let seq = 3; seq < 103; seq++) {
      assert.ok(sockets[0].sent.length - (seq - 3) <= 5, `${sockets[0].sent.length} at ${seq}`);
      sockets[0].says({ seq, payload: seq - 2, offset: seq - 2 });
    }
    assert.deepEqual(await Promise.all(answers), counts(1, 100));
    assert.deepEqual(sockets[0].sent.map(({ payload }) => payload), counts(1, 100));
  },

  async an_aborted_request_gives_nothing_but_its_offset_counts(clock) {
    const { gate, sockets, tells } = await playOpen();
    const stop = new AbortController();
    const answer = gate.request(1001, 1, { signal: stop.signal });
    await refused(gate.request(1001, 2, { signal: AbortSignal.abort() }), { maybeRan: false });
    stop.abort("changed my mind");
    const told = { reason: "ABORTED", status: 1, maybeRan: true, cause: "changed my mind" };
    await refused(answer, told);
    sockets[0].took();
    sockets[0].says({ seq: 3, payload: "late", offset: 1 });
    await clock.pass(1_000);
    assert.deepEqual(sockets[0].took(), [{ type: "heartbeat", ack: 1 }]);
    assert.deepEqual([tells("message"), tells("error")], [[], []]);
  },

  async a_place_in_flight_is_free_when_no_answer_can_come_for_it(clock) {
    const { gate, sockets } = await playOpen({ timeoutMs: 20_000 }, { limits: { unanswered_max: 4 } });
    const stop = new AbortController();
    const { signal } = stop;
    const gone = [1, 2].map((n) => rejected(gate.request(1001, n, { signal })));
    const slow = rejected(gate.request(1001, 3, { timeoutMs: 2_000 }));
    stop.abort();
    await Promise.all(gone);
    // The gateway has them all the same.
    const sent = (socket) => socket.took().map(({ payload }) => payload);
    const next = [4, 5, 6, 7].map((n) => gate.request(1001, n));
    assert.deepEqual(sent(sockets[0]), [1, 2, 3]);
    sockets[0].says({ seq: 3, payload: "late", offset: 1 });
    assert.deepEqual(sent(sockets[0]), [4]);
    sockets[0].ends(1006);
    await clock.pass(500);
    const gap = { outcome: "gap", received_seq: 6, offset: 9, limits: { unanswered_max: 4 } };
    await sockets[1].begins(gap);
    assert.deepEqual(sent(sockets[1]), [5]);
    await clock.pass(1_500);
    assert.equal((await slow).reason, "TIMEOUT");
    assert.deepEqual(sent(sockets[1]), [6]);
    sockets[1].says(...[6, 7, 8].map((seq) => ({ seq, payload: seq - 2, offset: seq + 4 })));
    assert.deepEqual(sent(sockets[1]), [7]);
    sockets[1].says({ seq: 9, payload: 7, offset: 13 });
    assert.deepEqual(await Promise.all(next), [4, 5, 6, 7]);
  },

  async a_listener_that_throws_harms_nobody() {
    const { gate, sockets, tells } = await playOpen();
    const off = [
      gate.on("message", () => assert.fail("thrown")),
      gate.on("message", async () => assert.fail("rejected")),
      gate.on("error", () => assert.fail("thrown again")),
    ];
    const { error } = console;
    const said = [];
    console.error = (what) => said.push(what.message);
    sockets[0].says({ type: "news", payload: 1 });
    await settled();
    console.error = error;
    assert.deepEqual(said, ["thrown again", "thrown again"]);
    assert.deepEqual(tells("error").map(({ message }) => message), ["thrown", "rejected"]);
    off.forEach((each) => each());
    sockets[0].says({ type: "news", payload: 2 }, { type: "error", status: 8, reason: "X" });
    assert.deepEqual(tells("message").map(({ payload }) => payload), [1, 2]);
    assert.equal(tells("error").at(-1).reason, "X");
  },

  async a_reload_of_the_page_goes_on_with_the_session(clock) {
    const stored = new Map();
    const persist = {
      getItem: (name) => stored.get(name) ?? null,
      setItem: (name, value) => void stored.set(name, value),
      removeItem: (name) => void stored.delete(name),
    };
    const before = await playOpen({ persist });
    before.gate.request(1001).catch(() => {});
    before.sockets[0].says({ seq: 3, offset: 1 });
    assert.equal(stored.size, 0);
    before.happens("pagehide");
    assert.equal(stored.size, 1);
    const after = play({ persist });
    after.gate.open();
    assert.equal(stored.size, 0);
    await settled();
    const position = await after.sockets[0].begins({ outcome: "resumed", received_seq: 3 });
    const secret = `secret-${secrets - 1}`;
    assert.deepEqual(position, { session: "s-1", secret, boot: "b-1", offset: 1 });
    after.gate.send(1001, 0);
    after.gate.request(1001).catch(() => {});
    assert.deepEqual(after.sockets[0].took().map(({ seq }) => seq), [undefined, 4]);
    after.happens("pagehide");
    after.happens("pageshow");
    assert.equal(stored.size, 0);
    after.happens("pagehide");
    after.gate.close();
    assert.equal(stored.size, 0);
    before.gate.close();
    await clock.pass(0);
  },

  async messages_that_the_gateway_cannot_take_are_refused_here(clock) {
    const { gate, sockets, tells } = await playOpen({}, { limits: { message_bytes_max: 100 } });
    const large = "ä".repeat(50);
    await refused(gate.request(1001, large), { reason: "TOO_LARGE", maybeRan: false });
    for (const msgId of [0, -1, 1.5, 2 ** 32, "1001", undefined]) {
      await refused(gate.request(msgId), { reason: "BAD_MESSAGE", status: 3 });
    }
    assert.throws(() => gate.send(0), GatewayError);
    assert.match((await rejected(gate.request(1001, 1n))).message, /BigInt/);
    assert.equal(gate.send(1001, large), false);
    sockets[0].ends(1006);
    assert.equal(gate.send(1001, large), true);
    await clock.pass(500);
    await sockets[1].begins({ limits: { message_bytes_max: 100 } });
    assert.deepEqual(tells("error").map(({ reason }) => reason), ["TOO_LARGE"]);
    assert.deepEqual([sockets[0].took(), sockets[1].took()], [[], []]);
  },
};

// ---- Groups at a gateway that is played.

const at = (offset, epoch = "e1") => ({ epoch, offset });
const push = (offset, payload = offset, more) =>
  ({ type: "push", msg_id: 7001, group: "room:7", offset, payload, ...more });
/** A group's events, as a list that grows. */
function listen(room) {
  const seen = [];
  for (const name of ["push", "gap", "presence", "joined", "left"]) {
    room.on(name, (what) => void seen.push([name, what.payload ?? what.people ?? what.reason ?? what.name]));
  }
  return seen;
}
/** A gate in a group, of which it has what came up to offset 5. */
async function playRoom(options, presence) {
  const played = await playOpen();
  const room = played.gate.group("room:7", { ...options });
  const seen = listen(room);
  const joined = room.join();
  const [{ seq, ...asked }] = played.sockets[0].took();
  const first = { outcome: options?.since ? "resumed" : "joined", position: options?.since ?? at(5) };
  played.sockets[0].says({ seq, payload: { group: "room:7", count: 1, ...first }, offset: 1 });
  await joined;
  return { ...played, room, seen, asked };
}
const IN = { group: "room:7", outcome: "resumed", position: at(5), count: 1 };

Object.assign(alone, {
  async a_group_is_joined_and_its_pushes_move_its_position(clock) {
    const { gate, sockets, room, seen, asked } = await playRoom();
    assert.deepEqual(asked, { msg_id: 9010, payload: { group: "room:7", presence: false } });
    assert.equal(gate.group("room:7"), room);
    const by_id = [];
    gate.onPush(7001, (told) => void by_id.push([told.payload, told.group, told.from, told.offset]));
    sockets[0].says(push(6), push(8, "more", { from: "ann" }), push(8, "twice"), push(0, "now"));
    assert.deepEqual(seen, [["joined", "room:7"], ["push", 6], ["push", "more"], ["push", "now"]]);
    assert.deepEqual(by_id.at(1), ["more", "room:7", "ann", 8]);
    assert.deepEqual(room.position, at(8));
    // They are the group's, and no offsets of the session.
    await clock.pass(1_000);
    assert.deepEqual(sockets[0].took(), [{ type: "heartbeat", ack: 1 }]);
  },

  async a_position_waits_for_the_listener_and_a_resume_begins_there(clock) {
    const { sockets, room } = await playRoom();
    const ends = [];
    const got = [];
    room.on("push", ({ payload }) => new Promise((end) => ends.push(end) && got.push(payload)));
    sockets[0].says(push(6), push(7), push(8));
    ends[1]();
    ends[2]();
    await settled();
    assert.deepEqual(room.position, at(5));
    sockets[0].ends(1006);
    await clock.pass(500);
    const { groups } = await sockets[1].begins({ outcome: "resumed", offset: 1, groups: [IN] });
    assert.deepEqual(groups, [{ group: "room:7", position: at(5) }]);
    // What is told twice is heard once, whether its listener has ended or not.
    sockets[1].says(push(6), push(7), push(8), push(9));
    assert.deepEqual(got, [6, 7, 8, 9]);
    ends[0]();
    await settled();
    assert.deepEqual(room.position, at(8));
  },

  async what_a_group_missed_is_told(clock) {
    const { sockets, room, seen } = await playRoom();
    const gap = { group: "room:7", dropped: 3, position: at(9), reason: "SLOW" };
    const gaps = [];
    room.on("gap", (told) => void gaps.push(told));
    sockets[0].says({ type: "gap", payload: gap });
    assert.deepEqual([gaps.pop(), room.position], [gap, at(9)]);
    sockets[0].says(push(10), { type: "gap", payload: { ...gap, position: null } });
    assert.deepEqual([gaps.pop().dropped, room.position], [3, at(10)]);
    sockets[0].ends(1006);
    await clock.pass(500);
    const outcome = { ...IN, outcome: "gap", position: at(20, "e2") };
    await sockets[1].begins({ outcome: "resumed", offset: 1, groups: [outcome] });
    assert.deepEqual(gaps, [{ group: "room:7", dropped: 0, position: at(20, "e2"), reason: "" }]);
    sockets[1].says(push(21));
    assert.deepEqual([seen.at(-1), room.position], [["push", 21], at(21, "e2")]);
  },

  async pushes_to_the_session_that_are_missing_are_a_gap_of_the_gate() {
    const { sockets, tells } = await playOpen();
    sockets[0].says({ type: "gap", payload: { group: "", dropped: 2, position: null, reason: "SLOW" } });
    const { session, dropped, reason } = tells("gap")[0];
    assert.deepEqual([session, dropped, reason], ["s-1", 2, "SLOW"]);
  },

  async groups_are_joined_again_when_the_session_is_lost(clock) {
    const { gate, sockets, room, seen } = await playRoom({ since: at(5) });
    sockets[0].says(push(6));
    // A claim puts the new session into a group that nobody asked for; a service's is gone.
    const served = gate.group("served:1");
    const left = listen(served);
    sockets[0].says({ type: "joined", payload: { group: "served:1", outcome: "joined", position: at(1) } });
    sockets[0].ends(1006);
    const said = room.publish(7001, "hi", { toMe: true });
    await clock.pass(500);
    sockets[1].opens();
    const claimed = { group: "mine", outcome: "joined", position: at(3) };
    sockets[1].says({ type: "joined", payload: claimed });
    sockets[1].says({ type: "resumed", seq: 2, payload: { ...RESUMED, outcome: "lost", reason: "RESTARTED" } });
    const sent = sockets[1].took();
    assert.deepEqual(sent.map(({ msg_id, payload }) => [msg_id, payload.group]), [
      [9010, "room:7"], [9010, "served:1"], [9015, "room:7"],
    ]);
    assert.deepEqual(sent[0].payload.since, at(6));
    assert.deepEqual(sent[2].payload, { group: "room:7", msg_id: 7001, payload: "hi", to_me: true });
    const again = { ...IN, outcome: "gap", position: at(2, "e2") };
    // It is not let in yet when the gateway reads what it says there.
    sockets[1].says({ seq: sent[2].seq, status: 7, reason: "FORBIDDEN", offset: 1 });
    await settled();
    sockets[1].says({ seq: sent[1].seq, status: 7, reason: "FORBIDDEN", offset: 2 });
    sockets[1].says({ seq: sent[0].seq, payload: again, offset: 3 });
    await settled();
    const { seq, ...later } = sockets[1].took()[0];
    assert.deepEqual(later.payload, sent[2].payload);
    sockets[1].says({ seq, payload: at(3, "e2"), offset: 4 }, push(3, "hi"));
    assert.deepEqual(await said, at(3, "e2"));
    const other = room.publish(7001, "no");
    sockets[1].says({ seq: seq + 1, status: 7, reason: "FORBIDDEN", offset: 5 });
    await refused(other, { reason: "FORBIDDEN" });
    assert.equal(sockets[1].took().length, 1);
    assert.deepEqual(seen.slice(1), [["push", 6], ["gap", ""], ["push", "hi"]]);
    assert.deepEqual(left, [["joined", "served:1"], ["left", "FORBIDDEN"]]);
    assert.deepEqual(gate.group("mine").position, at(3));
  },

  async a_position_that_was_saved_is_where_the_first_join_begins(clock) {
    const { gate, sockets } = await playOpen();
    const room = gate.group("room:7", { since: at(5) });
    assert.deepEqual(room.position, at(5));
    sockets[0].ends(1006);
    await clock.pass(500);
    const told = await sockets[1].begins({ outcome: "resumed", groups: [] });
    assert.equal(told.groups, undefined, "the session is in no group");
    gate.group("room:7", { since: at(1) }).join();
    assert.deepEqual(sockets[1].took()[0].payload.since, at(5));
  },

  async a_join_on_its_way_when_the_session_is_lost_is_sent_again(clock) {
    const { gate, sockets } = await playOpen();
    const joined = gate.group("room:7").join();
    sockets[0].ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "lost", reason: "ENDED" });
    const [{ msg_id, seq }] = sockets[1].took();
    assert.equal(msg_id, 9010);
    sockets[1].says({ seq, payload: { ...IN, outcome: "joined" }, offset: 1 });
    assert.equal((await joined).outcome, "joined");
  },

  async a_claim_that_puts_a_new_session_in_says_what_the_old_one_missed(clock) {
    Math.random = () => 0;
    const { gate, sockets } = await playOpen();
    const seen = listen(gate.group("mine"));
    const claimed = (position) =>
      ({ type: "joined", payload: { group: "mine", outcome: "joined", position } });
    sockets[0].says(claimed(at(3)), { ...push(4), group: "mine" });
    for (const [position, events] of [[at(4), []], [at(7), [["gap", ""]]], [at(7, "e2"), [["gap", ""]]]]) {
      seen.length = 0;
      const tries = sockets.length;
      sockets.at(-1).ends(1006);
      await clock.pass(0);
      assert.equal(sockets.length, tries + 1);
      sockets.at(-1).opens();
      sockets.at(-1).says(claimed(position));
      const lost = { ...RESUMED, outcome: "lost", secret: "s", session: `s-${tries}` };
      sockets.at(-1).says({ type: "resumed", seq: 2, payload: lost });
      assert.deepEqual([seen, sockets.at(-1).took()], [events, []]);
    }
  },

  async who_leaves_while_it_waits_to_be_let_in_stays_out(clock) {
    const { sockets, room, seen } = await playRoom();
    sockets[0].ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "lost", reason: "RESTARTED" });
    // The first try gets no answer in time, the second one is never made.
    sockets[1].took();
    await clock.pass(5_000);
    const gone = room.leave();
    const { seq } = sockets[1].took().find(({ msg_id }) => msg_id === 9011);
    sockets[1].says({ seq, offset: 1 });
    await gone;
    await clock.pass(10_000);
    assert.deepEqual(sockets[1].took().filter(({ msg_id }) => msg_id), []);
    assert.deepEqual(seen.at(-1), ["left", ""]);
  },

  async who_cannot_be_let_in_yet_asks_again(clock) {
    const { sockets, room, seen } = await playRoom();
    sockets[0].ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "lost", reason: "RESTARTED" });
    const ask = () => sockets[1].took().filter(({ msg_id }) => msg_id === 9010);
    const full = { status: 8, reason: "QUEUE_FULL", retry_after_ms: 3_000 };
    sockets[1].says({ seq: ask()[0].seq, ...full, offset: 1 });
    await clock.pass(2_999);
    assert.deepEqual(ask(), []);
    await clock.pass(1);
    await clock.pass(5_000 + 1_000 - 1);
    const [second, ...more] = ask();
    assert.deepEqual([second.msg_id, more], [9010, []]);
    await clock.pass(1);
    const { seq } = ask()[0];
    // The session goes on, without the group that it could not join yet.
    sockets[1].ends(1006);
    await clock.pass(1_000);
    await sockets[2].begins({ outcome: "resumed", received_seq: seq, offset: 1, groups: [] });
    assert.equal(sockets[2].took()[0].msg_id, 9010);
    sockets[2].says({ seq, payload: { ...IN, outcome: "joined", position: at(5) }, offset: 2 });
    await settled();
    assert.deepEqual(seen, [["joined", "room:7"]]);
    assert.deepEqual(room.position, at(5));
  },

  async who_was_taken_out_while_away_is_told_and_does_not_come_back(clock) {
    const { sockets, room, seen, tells } = await playRoom();
    sockets[0].ends(1006);
    await clock.pass(500);
    const gone = { group: "room:7", outcome: "lost", position: null, count: 0 };
    await sockets[1].begins({ outcome: "resumed", offset: 1, groups: [gone] });
    assert.deepEqual(seen.at(-1), ["left", "LOST"]);
    assert.equal(room.position, undefined);
    assert.deepEqual(sockets[1].took(), []);
    sockets[1].says({ type: "left", payload: { group: "room:7", reason: "KICKED" } });
    assert.equal(seen.length, 2);
    assert.deepEqual(tells("error"), []);
  },

  async claims_and_services_put_a_session_into_groups_and_take_it_out() {
    const { gate, sockets } = await playOpen();
    const told = [];
    gate.on("joined", (room) => told.push(room.name));
    gate.on("left", ({ group, reason }) => void told.push([group, reason]));
    sockets[0].says({ type: "joined", payload: IN });
    sockets[0].says({ type: "left", payload: { group: "room:7", reason: "KICKED" } }, push(6));
    assert.deepEqual(told, ["room:7", ["room:7", "KICKED"]]);
  },

  async leaving_is_told_and_joining_is_new_after_it(clock) {
    const { sockets, room, seen } = await playRoom();
    const gone = room.leave();
    const [{ msg_id, seq, payload }] = sockets[0].took();
    assert.deepEqual([msg_id, payload], [9011, { group: "room:7" }]);
    sockets[0].says({ seq, payload: null, offset: 2 });
    await gone;
    assert.deepEqual(seen.at(-1), ["left", ""]);
    const joined = room.join();
    const [again] = sockets[0].took();
    assert.equal(again.payload.since, undefined);
    // The newest of each key is told to who joins, also if it came before.
    sockets[0].says({ seq: again.seq, payload: { ...IN, outcome: "joined", position: at(1) }, offset: 3 });
    await joined;
    sockets[0].says(push(2), push(5));
    assert.deepEqual(seen.slice(2), [["joined", "room:7"], ["push", 2], ["push", 5]]);
    sockets[0].ends(1000);
    assert.deepEqual(seen.at(-1), ["left", "CLOSED"]);
    await clock.pass(0);
  },

  async who_is_there_is_read_once_and_then_followed(clock) {
    const played = await playRoom({ presence: true });
    const { sockets, room, seen, asked } = played;
    assert.equal(asked.payload.presence, true);
    const ann = { user: "ann", session: "", away: false };
    const bob = { user: "bob", session: "", away: false };
    const guest = { user: "", session: "s-7", away: false };
    const list = async (socket, members) => {
      const [{ msg_id, seq }] = socket.took();
      assert.equal(msg_id, 9013);
      socket.says({ seq, payload: { members, next: "", count: members.length } });
    };
    await list(sockets[0], [ann]);
    const tell = (more) => ({ type: "presence", payload: { group: "room:7", count: 2, joined: [], left: [], reset: false, ...more } });
    sockets[0].says(tell({ joined: [bob, guest] }), tell({ left: [ann] }), tell({ left: [guest] }));
    const people = seen.filter(([name]) => name === "presence").map(([, all]) => all);
    assert.deepEqual(people, [[ann], [ann, bob, guest], [bob, guest], [bob]]);
    sockets[0].says(tell({ reset: true, count: 900 }));
    await list(sockets[0], [guest]);
    assert.deepEqual(seen.at(-1), ["presence", [guest]]);
    // What was told while the line was cut is not told again: it is read.
    sockets[0].ends(1006);
    await clock.pass(500);
    await sockets[1].begins({ outcome: "resumed", offset: 1, groups: [IN] });
    await list(sockets[1], [ann, guest]);
    assert.deepEqual(seen.at(-1), ["presence", [ann, guest]]);
    // Where names are told to nobody the count is.
    const counts = [];
    room.on("presence", ({ count }) => counts.push(count));
    sockets[1].says(tell({ reset: true, count: 901 }));
    const [{ seq }] = sockets[1].took();
    sockets[1].says({ seq, status: 7, reason: "FORBIDDEN", offset: 2 });
    await clock.pass(0);
    assert.deepEqual(counts, [901]);
  },

  async kept_pushes_and_members_are_listed() {
    const { sockets, room } = await playRoom();
    const history = room.history({ limit: 2, newestFirst: true, since: at(1) });
    const [asked] = sockets[0].took();
    assert.deepEqual(asked.payload, { group: "room:7", since: at(1), limit: 2, newest_first: true });
    const kept = { offset: 3, msg_id: 7001, unix_ms: 9, key: "" };
    const pushes = [{ ...kept, payload: "x" }, { ...kept, payload_base64: "AQI=" }];
    sockets[0].says({ seq: asked.seq, payload: { position: at(3), gap: true, pushes } });
    const told = await history;
    const read = { offset: 3, msgId: 7001, unixMs: 9, key: "" };
    const bytes = Uint8Array.of(1, 2);
    assert.deepEqual(told.pushes, [{ ...read, payload: "x" }, { ...read, payload: bytes }]);
    assert.deepEqual([told.gap, told.position], [true, at(3)]);
    room.history().catch(() => {});
    assert.deepEqual(sockets[0].took()[0].payload, { group: "room:7", limit: 100 });
    const members = room.members({ after: "x" });
    const [page] = sockets[0].took();
    assert.deepEqual([page.msg_id, page.payload], [9013, { group: "room:7", after: "x" }]);
    sockets[0].says({ seq: page.seq, payload: { members: [], next: "", count: 7 } });
    assert.equal((await members).count, 7);
    const sent = room.publish(7001, bytes, { key: "k" });
    const [publish] = sockets[0].took();
    const wanted = { group: "room:7", msg_id: 7001, payload_base64: "AQI=", key: "k" };
    assert.deepEqual([publish.payload, publish.key], [wanted, undefined]);
    sockets[0].says({ seq: publish.seq, payload: at(4) });
    assert.deepEqual(await sent, at(4));
  },

  async a_push_that_nobody_listens_for_is_a_message(clock) {
    const { gate, sockets, tells } = await playOpen();
    const direct = { type: "push", msg_id: 7002, payload_base64: "AQI=", id: "m-1", offset: 1 };
    sockets[0].says(direct);
    const { type, msgId, payload, id, offset } = tells("message")[0];
    assert.deepEqual([type, msgId, id, offset], ["push", 7002, "m-1", 1]);
    assert.deepEqual(payload, Uint8Array.of(1, 2));
    let done;
    const off = gate.onPush(7002, () => new Promise((end) => (done = end)));
    sockets[0].says({ ...direct, offset: 2 }, { ...direct, offset: 2 });
    assert.equal(tells("message").length, 1);
    await clock.pass(1_000);
    assert.deepEqual(sockets[0].took(), [{ type: "heartbeat", ack: 1 }]);
    done();
    await clock.pass(1_000);
    assert.deepEqual(sockets[0].took(), [{ type: "heartbeat", ack: 2 }]);
    off();
    sockets[0].says({ ...direct, offset: 3 });
    assert.equal(tells("message").length, 2);
  },

  async the_gateways_own_ids_are_where_it_has_them() {
    const { gate, sockets } = await playOpen({ gatewayIds: 500 });
    gate.group("room:7").join().catch(() => {});
    assert.equal(sockets[0].took()[0].msg_id, 510);
  },
});

// ---- A gateway that runs.

const gates = [];

/** A gate that is closed at the end of the case. */
function connect(to, options) {
  const reconnect = { minMs: 5, maxMs: 50 };
  const gate = new Gateway(to, { WebSocket, reconnect, token: args.token, ...options });
  gates.push(gate);
  return gate;
}

/** Asks the demo service for the next number that it counts for this user, or this session. */
const count = (gate, options) =>
  gate.request(1001, { count: true }, options).then((answer) => answer.count);

const asks = {
  async every_value_of_json_comes_back() {
    const gate = connect(url);
    await gate.open();
    const all = [{ text: "hällo\n😀", n: [1, null, 2.5, 1e300] }, "", "text", 0, false, null, []];
    for (const value of all) assert.deepEqual(await gate.request(1001, value), value);
    assert.equal(await gate.request(1001), undefined);
    const { id, node, isResumable } = gate.session;
    const who = await gate.request(9002);
    assert.deepEqual([who.session, who.node, typeof isResumable], [id, node, "boolean"]);
  },

  async bytes_come_back_as_bytes() {
    const gate = connect(url);
    await gate.open();
    for (const length of [1, 2, 3, 256, 20_000]) {
      const bytes = Uint8Array.from({ length }, (_, n) => (n * 7) % 256);
      const answer = await gate.request(4001, bytes);
      assert.ok(answer instanceof Uint8Array);
      assert.deepEqual(Buffer.from(answer), Buffer.from(bytes));
    }
  },

  async errors_say_what_happened() {
    const gate = connect(url);
    await gate.open();
    const noRoute = { status: 5, reason: "NO_ROUTE", maybeRan: false, retryAfterMs: 0 };
    await refused(gate.request(77), noRoute);
    const busy = gate.request(1001, { fail: 14, retry_after_ms: 30 });
    await refused(busy, { status: 14, reason: "", maybeRan: true, retryAfterMs: 30 });
    const unknown = { reason: "OUTCOME_UNKNOWN", maybeRan: true };
    await refused(gate.request(1001, { fail_call: 13 }), unknown);
    await refused(gate.request(1001, 1, { id: "x".repeat(65) }), { reason: "TOO_LARGE" });
    const large = { reason: "TOO_LARGE", maybeRan: false };
    await refused(gate.request(1001, "x".repeat(70_000)), large);
    assert.equal(await gate.request(1001, "still here"), "still here");
  },

  async the_largest_message_passes_and_no_larger_one() {
    const sent = [];
    class Tapped extends WebSocket {
      send(text) {
        sent.push(text.length);
        super.send(text);
      }
    }
    const gate = connect(url, { WebSocket: Tapped, resume: false }); // no acks
    await gate.open();
    await gate.request(1001, "x".repeat(60_000));
    const rest = 65_536 - sent.at(-1);
    await gate.request(1001, "x".repeat(60_000 + rest));
    assert.equal(sent.at(-1), 65_536);
    await refused(gate.request(1001, "x".repeat(60_001 + rest)), { reason: "TOO_LARGE" });
    assert.equal(gate.state, "open");
  },

  async an_answer_that_is_late_is_no_answer() {
    const gate = connect(url);
    await gate.open();
    const slow = await rejected(gate.request(2001, { delay_ms: 1_000 }, { timeoutMs: 50 }));
    // On a busy machine the gateway, which is told the time, may say it before the timer does.
    assert.ok(["TIMEOUT", "EXPIRED", "OUTCOME_UNKNOWN"].includes(slow.reason), slow.reason);
    assert.equal(slow.maybeRan, slow.reason !== "EXPIRED");
    const stop = new AbortController();
    const long = gate.request(2001, { delay_ms: 1_000 }, { signal: stop.signal });
    stop.abort();
    await refused(long, { reason: "ABORTED", maybeRan: true });
    assert.equal(await gate.request(3001, "quick"), "quick");
  },

  async messages_keep_the_order_of_the_calls() {
    const gate = connect(url, { queue: { items: 1_000 } });
    // Before there is a connection, and then more than may be in flight at once.
    const early = counts(1, 20).map(() => count(gate));
    await gate.open();
    for (let n = 0; n < 10; n++) assert.equal(gate.send(1001, { count: true }), true);
    const late = counts(1, 200).map(() => count(gate));
    assert.deepEqual(await Promise.all(early), counts(1, 20));
    assert.deepEqual(await Promise.all(late), counts(31, 230));
  },

  async an_id_runs_once() {
    const gate = connect(url);
    await gate.open();
    const ask = (id) => count(gate, { id });
    assert.deepEqual([await ask("buy-77"), await ask("buy-77")], [1, 1]);
    assert.deepEqual([await ask(true), await ask(true)], [2, 3]);
  },

  async a_token_is_no_harm_where_nobody_signs_in() {
    const gate = connect(url, { token: "t" });
    await gate.open();
    assert.deepEqual([gate.session.user, await count(gate)], ["", 1]);
  },

  async a_closed_gate_refuses_and_opens_again() {
    const gate = connect(url);
    await gate.open();
    const answer = gate.request(2001, { delay_ms: 500 });
    gate.close();
    await refused(answer, { reason: "CLOSED", maybeRan: true });
    await refused(gate.request(1001), { reason: "CLOSED", maybeRan: false });
    await gate.open();
    assert.equal(await gate.request(1001, "again"), "again");
  },

  async a_cut_connection_comes_back() {
    const gate = connect(url);
    const states = [];
    gate.on("state", (state) => void states.push(state));
    await gate.open();
    gate.cut();
    assert.equal(await gate.request(1001, "back"), "back");
    assert.deepEqual(states, ["connecting", "open", "away", "connecting", "open"]);
  },

  async a_gateway_that_is_not_there_is_waited_for() {
    const proxy = await Proxy.start();
    proxy.isDown = true;
    const gate = connect(proxy.url);
    const opened = gate.open();
    await until("it tried three times", () => proxy.connections > 2);
    assert.notEqual(gate.state, "open");
    proxy.isDown = false;
    await opened;
    proxy.stop();
  },
};

const tokens = {
  // The first one, while the token still holds.
  async an_expired_token_is_replaced() {
    const asked = [];
    const token = (why) => (asked.push(why) === 1 ? args.short : args.alice);
    const gate = connect(url, { token });
    await gate.open();
    const closed = new Promise((resolve) => {
      gate.on("state", (state, error) => state === "away" && resolve(error.code));
    });
    assert.equal(await closed, 4004);
    assert.equal((await gate.request(1001, { who: true })).user, "alice");
    assert.deepEqual(asked, ["first", "expired"]);
  },

  async a_token_signs_in() {
    for (const token of [args.alice, () => args.alice, async () => args.alice]) {
      const gate = connect(url, { token });
      await gate.open();
      assert.equal(gate.session.user, "alice");
      assert.ok(gate.session.expiresUnixS > Date.now() / 1000);
      const { user } = await gate.request(1001, { who: true });
      assert.equal(user, "alice");
      const { session } = await gate.request(9002);
      assert.equal(session, gate.session.id);
    }
  },

  async without_a_token_the_client_is_anonymous() {
    for (const token of [undefined, () => null]) {
      const gate = connect(url, { token });
      await gate.open();
      assert.equal(gate.session.user, "");
      const error = { reason: "UNAUTHENTICATED", status: 16, maybeRan: false };
      await refused(gate.request(1001), error);
    }
  },

  async a_bad_token_is_replaced_once() {
    const asked = [];
    const give = (...all) => (why) => all[asked.push(why) - 1];
    const gate = connect(url, { token: give("bad", args.alice) });
    const said = event(gate, "error");
    await gate.open();
    assert.equal((await said).reason, "UNAUTHENTICATED");
    assert.equal(gate.session.user, "alice");
    assert.deepEqual(asked.splice(0), ["first", "bad"]);
    const other = connect(url, { token: give("bad", "worse") });
    await refused(other.open(), { code: 4500 });
    assert.deepEqual([other.state, asked], ["closed", ["first", "bad"]]);
  },
};

/** Passes bytes on, and breaks connections after so many of them. */
class Proxy {
  connections = 0;
  isDown = false;
  #open = new Set();

  static async start(budget = () => Infinity) {
    const proxy = new Proxy();
    const target = new URL(url);
    proxy.server = net.createServer((near) => proxy.#pass(near, target, budget()));
    await new Promise((resolve) => proxy.server.listen(0, "127.0.0.1", resolve));
    target.port = proxy.server.address().port;
    proxy.url = target.href;
    target.port = new URL(url).port;
    return proxy;
  }

  #pass(near, { hostname, port }, budget) {
    this.connections++;
    if (this.isDown) return near.destroy();
    const far = net.connect(port, hostname);
    const pair = [near, far];
    this.#open.add(pair);
    const end = () => {
      pair.forEach((socket) => socket.destroy());
      this.#open.delete(pair);
    };
    for (const [from, to] of [pair, [far, near]]) {
      from.setNoDelay();
      from.on("data", (bytes) => {
        const passed = bytes.subarray(0, budget);
        budget -= passed.length;
        to.write(passed, () => budget <= 0 && end());
      });
      from.on("error", end).on("close", end);
    }
  }

  /** Breaks what is open: both sides, or the client's alone, so that the gateway hears nothing. */
  cut(onlyNear = false) {
    for (const [near, far] of this.#open) {
      if (onlyNear) {
        near.removeAllListeners("close");
        near.destroy();
        far.removeAllListeners("data").resume();
      } else far.resetAndDestroy();
    }
  }

  stop() {
    this.server.close();
    this.cut();
  }
}

/** Storage as a page has it. */
const storage = () => {
  const entries = new Map();
  return {
    entries,
    getItem: (name) => entries.get(name) ?? null,
    setItem: (name, value) => void entries.set(name, value),
    removeItem: (name) => void entries.delete(name),
  };
};

const survives = {
  async a_session_goes_on_after_a_break() {
    const proxy = await Proxy.start();
    const gate = connect(proxy.url);
    await gate.open();
    const { id, isResumable, ttlMs } = gate.session;
    assert.deepEqual([isResumable, ttlMs > 0], [true, true]);
    const first = await count(gate);
    for (const onlyNear of [false, true, false]) {
      const resumed = event(gate, "resumed");
      const under_way = gate.request(2001, { delay_ms: 200, n: 7 });
      await gate.request(3001, 1);
      proxy.cut(onlyNear);
      assert.deepEqual(await resumed, { session: id, reason: "" });
      assert.deepEqual(await under_way, { delay_ms: 200, n: 7 });
    }
    assert.equal(await count(gate), first + 1);
    assert.equal(proxy.connections, 4);
    proxy.stop();
  },

  async every_request_is_answered_once_however_often_the_line_breaks() {
    for (const seed of (args.seeds ?? "1,2,3").split(",").map(Number)) {
      const random = generator(seed);
      let isCalm = false;
      const budget = () => (isCalm ? Infinity : 300 + Math.floor(random() ** 3 * 20_000));
      const proxy = await Proxy.start(budget);
      const gate = connect(proxy.url, {
        queue: { items: 1_000, bytes: 1e6 },
        reconnect: { minMs: 1, maxMs: 10 },
        timeoutMs: 60_000,
      });
      const told = [];
      for (const name of ["gap", "lost", "error"]) gate.on(name, (what) => void told.push(what));
      await gate.open();
      const { id } = gate.session;
      const first = await count(gate);
      const answers = [];
      for (let n = 1; n <= 1_000; n++) {
        answers.push(count(gate));
        if (n % 50 === 0) await later(random() * 20);
        if (n % 400 === 0) proxy.cut(true);
      }
      // The service counts what it runs: in order is each once, and to each its own answer.
      const expected = counts(first + 1, first + 1_000);
      assert.deepEqual(await Promise.all(answers), expected, `seed ${seed}`);
      assert.ok(proxy.connections > 20, `seed ${seed}: ${proxy.connections} connections`);
      isCalm = true;
      proxy.cut();
      assert.equal(await count(gate), first + 1_001);
      assert.deepEqual([told, gate.session.id], [[], id], `seed ${seed}`);
      gate.close();
      proxy.stop();
    }
  },

  async a_reloaded_page_has_its_session_again() {
    const persist = storage();
    const network = new EventTarget();
    const proxy = await Proxy.start();
    const before = connect(proxy.url, { persist, network });
    await before.open();
    const { id } = before.session;
    const first = await count(before);
    network.dispatchEvent(new Event("pagehide"));
    proxy.isDown = true;
    proxy.cut();
    const after = connect(proxy.url, { persist, network: null });
    const resumed = event(after, "resumed");
    const opened = after.open();
    before.close();
    proxy.isDown = false;
    await opened;
    assert.equal((await resumed).session, id);
    assert.equal(await count(after), first + 1);
    proxy.stop();
  },

  async two_tabs_with_one_session_do_not_fight_for_it() {
    const persist = storage();
    const network = new EventTarget();
    const first = connect(url, { persist, network });
    await first.open();
    const { id } = first.session;
    network.dispatchEvent(new Event("pagehide"));
    const lost = event(first, "lost");
    const second = connect(url, { persist, network: null });
    await second.open();
    assert.equal(second.session.id, id);
    assert.equal((await lost).reason, "REPLACED");
    assert.notEqual(first.session.id, id);
    await Promise.all([first, second].map((gate) => gate.request(1001, 1)));
    await later(200);
    assert.deepEqual([first.state, second.state, second.session.id], ["open", "open", id]);
  },

  async a_session_that_nobody_knows_is_lost_and_the_next_one_works() {
    const persist = storage();
    const key = { session: "0000000000000000", secret: "a".repeat(26), boot: "no" };
    persist.setItem(`shardgate ${url}`, JSON.stringify({ ...key, offset: 5, seq: 9 }));
    const gate = connect(url, { persist });
    const lost = event(gate, "lost");
    await gate.open();
    assert.notEqual((await lost).reason, "");
    const first = await count(gate);
    assert.equal(await count(gate), first + 1);
  },

  async leaving_ends_the_session() {
    const persist = storage();
    const network = new EventTarget();
    const gate = connect(url, { persist, network });
    await gate.open();
    network.dispatchEvent(new Event("pagehide"));
    const kept = [...persist.entries];
    gate.close();
    kept.forEach(([name, value]) => persist.setItem(name, value));
    const other = connect(url, { persist });
    const lost = event(other, "lost");
    await other.open();
    assert.ok((await lost).reason);
  },
};

/** A gate in a group, and the pushes that it got: their offset and payload. */
async function member(to, name, options) {
  const gate = connect(to);
  const room = gate.group(name, options);
  const got = [];
  const told = [];
  room.on("push", ({ offset, payload }) => void got.push([offset, payload]));
  for (const event of ["gap", "joined", "left"]) room.on(event, () => void told.push(event));
  gate.on("error", (error) => void told.push(error));
  await gate.open();
  await room.join();
  return { gate, room, got, told };
}

let rooms_made = 0;
const run = crypto.randomUUID().slice(0, 8);
const newRoom = (kind = "room") => `${kind}:${run}-${++rooms_made}`;

/** The gateway has the groups `room:*` (history), `last:*` and `closed:*`. */
const rooms = {
  async all_members_see_one_order() {
    const name = newRoom();
    const all = await Promise.all([1, 2, 3].map(() => member(url, name)));
    const sent = all.flatMap(({ room }, who) =>
      counts(1, 50).map((n) => room.publish(7001, [who, n], { toMe: true })));
    const offsets = (await Promise.all(sent)).map(({ offset }) => offset);
    assert.deepEqual(offsets.toSorted((a, b) => a - b), counts(1, 150));
    await until("all have all", () => all.every(({ got }) => got.length === 150));
    const [first, ...others] = all.map(({ got }) => got);
    assert.deepEqual(first.map(([offset]) => offset), counts(1, 150));
    for (const other of others) assert.deepEqual(other, first);
    for (const who of [0, 1, 2]) {
      const own = first.filter(([, [by]]) => by === who).map(([, [, n]]) => n);
      assert.deepEqual(own, counts(1, 50), "in the order of the calls");
    }
    for (const { told, room } of all) {
      assert.deepEqual([told, room.position.offset], [["joined"], 150]);
    }
  },

  async a_publisher_hears_itself_only_if_it_wants_to() {
    const name = newRoom();
    const [ann, bob] = [await member(url, name), await member(url, name)];
    await ann.room.publish(7001, "not to me");
    await ann.room.publish(7001, "to me", { toMe: true });
    await ann.room.publish(7001, Uint8Array.of(1, 2, 255));
    await until("bob has all", () => bob.got.length === 3);
    assert.deepEqual(ann.got, [[2, "to me"]]);
    assert.deepEqual(bob.got, [[1, "not to me"], [2, "to me"], [3, Uint8Array.of(1, 2, 255)]]);
    const from = new Promise((resolve) => bob.gate.onPush(7002, resolve));
    await ann.room.publish(7002, null, { id: "m-1" });
    const push = await from;
    assert.deepEqual([push.from, push.id, push.group], [ann.gate.session.id, "m-1", name]);
    // An id runs once.
    assert.equal((await ann.room.publish(7002, null, { id: "m-1" })).offset, 4);
  },

  async who_comes_back_has_missed_nothing_and_hears_nothing_twice() {
    for (const seed of [1, 2, 3]) {
      const random = generator(seed);
      let isCalm = false;
      const budget = () => (isCalm ? Infinity : 400 + Math.floor(random() ** 2 * 8_000));
      const proxy = await Proxy.start(budget);
      const name = newRoom();
      const [near, far] = [await member(url, name), await member(proxy.url, name)];
      let unfinished = 0;
      const slow = [];
      far.room.on("push", async ({ offset }) => {
        unfinished++;
        await later(random() * 3);
        slow.push(offset);
        unfinished--;
      });
      for (let n = 1; n <= 400; n++) {
        await near.room.publish(7001, n);
        if (n % 100 === 0) proxy.cut(true);
      }
      isCalm = true;
      const all = counts(1, 400).map((n) => [n, n]);
      await until("it has all", () => far.got.length >= 400 && !unfinished);
      assert.deepEqual(far.got, all, `seed ${seed}`);
      assert.deepEqual(slow.toSorted((a, b) => a - b), counts(1, 400));
      assert.deepEqual([far.told, far.room.position.offset], [["joined"], 400]);
      assert.ok(proxy.connections > 5, `${proxy.connections} connections`);
      far.gate.close();
      proxy.stop();
    }
  },

  async a_saved_position_is_where_the_next_program_goes_on() {
    const name = newRoom();
    const [ann, bob] = [await member(url, name), await member(url, name)];
    await ann.room.publish(7001, 1);
    await until("bob has it", () => bob.got.length === 1);
    const since = bob.room.position;
    bob.gate.close();
    for (const n of [2, 3]) await ann.room.publish(7001, n);
    const next = await member(url, name, { since });
    await until("it has the rest", () => next.got.length === 2);
    assert.deepEqual([next.got, next.told], [[[2, 2], [3, 3]], ["joined"]]);
    // Of another life of the group nobody knows what is missing.
    const strange = await member(url, name, { since: { epoch: "none", offset: 1 } });
    assert.deepEqual(strange.told, ["joined", "gap"]);
    await ann.room.publish(7001, 4);
    await until("it is told what is new", () => strange.got.length === 1);
  },

  async what_was_said_before_can_be_read() {
    const { room } = await member(url, newRoom());
    for (const n of counts(1, 5)) await room.publish(7001, { n });
    const { pushes, position, gap } = await room.history({ limit: 2, newestFirst: true });
    assert.deepEqual(pushes.map(({ offset, payload }) => [offset, payload.n]), [[5, 5], [4, 4]]);
    assert.deepEqual([position.offset, gap], [5, false]);
    assert.ok(Math.abs(pushes[0].unixMs - Date.now()) < 60_000);
    const since = await room.history({ since: { ...position, offset: 3 } });
    assert.deepEqual(since.pushes.map(({ offset }) => offset), [4, 5]);
    assert.deepEqual((await room.history({ limit: 0 })).pushes, []);
  },

  async the_newest_of_each_key_is_told_to_who_joins() {
    const name = newRoom("last");
    const ann = await member(url, name);
    for (const n of counts(1, 3)) {
      for (const key of ["x", "y"]) await ann.room.publish(7001, `${key}${n}`, { key });
    }
    const bob = await member(url, name);
    await until("it has them", () => bob.got.length === 2);
    assert.deepEqual(bob.got, [[5, "x3"], [6, "y3"]]);
    await ann.room.publish(7001, "x4", { key: "x" });
    await until("it goes on", () => bob.got.length === 3);
    assert.deepEqual([bob.got[2], bob.told], [[7, "x4"], ["joined"]]);
  },

  async what_nobody_allows_is_refused_and_does_no_harm() {
    const { gate, room } = await member(url, newRoom());
    const forbidden = { reason: "FORBIDDEN", status: 7, maybeRan: false };
    await refused(gate.group("closed:1").join(), forbidden);
    await refused(gate.group("no-such-kind").join(), forbidden);
    await refused(gate.group(newRoom()).publish(7001, 1), forbidden);
    await refused(gate.group("").join(), { reason: "BAD_MESSAGE" });
    await refused(gate.group("x".repeat(129)).join(), { reason: "TOO_LARGE" });
    await refused(room.publish(0, 1), { reason: "BAD_MESSAGE" });
    assert.equal((await room.publish(7001, 1)).offset, 1);
    await room.leave();
    await refused(room.publish(7001, 1), forbidden);
    await room.leave();
    await room.join();
    assert.equal((await room.publish(7001, 1)).offset, 2);
  },

  async a_service_puts_a_session_into_a_room_and_says_things_there() {
    const name = newRoom();
    const gate = connect(url);
    await gate.open();
    const joined = event(gate, "joined");
    const lines = [];
    gate.onPush(2100, ({ payload, group, offset }) => void lines.push([group, offset, payload]));
    await gate.request(2001, { join: name });
    const room = await joined;
    assert.equal(room, gate.group(name));
    await gate.request(2001, { say: "hi", room: name });
    await until("it is pushed", () => lines.length === 1);
    assert.deepEqual(lines[0], [name, 1, { from: gate.session.id, text: "hi" }]);
    await refused(gate.request(2001, { say: " ", room: name }), { status: 3, reason: "" });
    // A break changes nothing about who is in.
    const resumed = event(gate, "resumed");
    gate.cut();
    await resumed;
    await gate.request(2001, { say: "again", room: name });
    await until("it is pushed again", () => lines.length === 2);
    const left = event(room, "left");
    await gate.request(2001, { leave: name });
    assert.equal((await left).group, name);
    assert.equal(room.position, undefined);
  },

  async many_groups_are_entered_at_once() {
    const gate = connect(url, { queue: { items: 1_000 } });
    const all = counts(1, 64).map(() => gate.group(newRoom()));
    gate.open();
    // Neither is waited for.
    all.forEach((room) => room.join());
    const early = await Promise.all(all.map((room) => room.publish(7001, 0)));
    assert.deepEqual(early.map(({ offset }) => offset), Array(64).fill(1));
    await refused(gate.group(newRoom()).join(), { reason: "TOO_LARGE" });
    const resumed = event(gate, "resumed");
    const left = [];
    gate.on("left", (told) => void left.push(told));
    gate.cut();
    await resumed;
    const said = await Promise.all(all.map((room) => room.publish(7001, 1)));
    assert.deepEqual(said.map(({ offset }) => offset), Array(64).fill(2));
    assert.deepEqual(left, []);
  },
};

/** The gateway keeps sessions for 3 s, and 4 answers of each. */
const forgets = {
  async a_lost_session_does_not_lose_its_groups() {
    const proxy = await Proxy.start();
    const name = newRoom();
    const [ann, bob] = [await member(url, name), await member(proxy.url, name)];
    await ann.room.publish(7001, 1);
    await until("bob has it", () => bob.got.length === 1);
    const lost = event(bob.gate, "lost");
    proxy.isDown = true;
    proxy.cut();
    await later(5_000);
    await ann.room.publish(7001, 2);
    proxy.isDown = false;
    assert.equal((await lost).reason, "EXPIRED");
    await ann.room.publish(7001, 3);
    await until("bob has all", () => bob.got.length === 3);
    assert.deepEqual([bob.got, bob.told], [counts(1, 3).map((n) => [n, n]), ["joined"]]);
    assert.equal((await bob.room.publish(7001, "here")).offset, 4);
    proxy.stop();
  },

  async who_is_away_for_too_long_has_lost_the_session() {
    const proxy = await Proxy.start();
    const gate = connect(proxy.url);
    await gate.open();
    const { id } = gate.session;
    const plain = gate.request(2001, { delay_ms: 300 }, { timeoutMs: 20_000 });
    const named = gate.request(2001, { delay_ms: 300 }, { timeoutMs: 20_000, id: "buy-1" });
    await gate.request(3001);
    proxy.isDown = true;
    proxy.cut();
    await later(5_000);
    const lost = event(gate, "lost");
    proxy.isDown = false;
    const { reason, session } = await lost;
    assert.equal(reason, "EXPIRED");
    assert.deepEqual([gate.session.id, session === id], [session, false]);
    await refused(plain, { reason: "LOST", maybeRan: true });
    assert.deepEqual(await named, { delay_ms: 300 });
    proxy.stop();
  },

  async what_the_gateway_could_not_keep_is_a_gap() {
    const proxy = await Proxy.start();
    const gate = connect(proxy.url);
    await gate.open();
    const { id } = gate.session;
    const slow = (n) => gate.request(2001, { delay_ms: 100, n }, { timeoutMs: 4_000 });
    const answers = counts(1, 10).map(slow);
    await gate.request(3001);
    proxy.isDown = true;
    proxy.cut();
    const told = Promise.allSettled(answers);
    await later(1_000);
    const gap = event(gate, "gap");
    proxy.isDown = false;
    assert.deepEqual(await gap, { session: id, reason: "OVERFLOW" });
    const statuses = (await told).map(({ value, reason }) => value?.n ?? reason.reason);
    assert.deepEqual(statuses, [...Array(6).fill("TIMEOUT"), 7, 8, 9, 10]);
    assert.equal(await gate.request(3001, "on"), "on");
    proxy.stop();
  },
};

/** The gateway keeps no sessions. */
const without = {
  async each_connection_has_a_session_of_its_own() {
    const proxy = await Proxy.start();
    const gate = connect(proxy.url);
    const told = [];
    for (const name of ["gap", "lost", "error"]) gate.on(name, (what) => void told.push(what));
    await gate.open();
    const { id, isResumable } = gate.session;
    const plain = gate.request(2001, { delay_ms: 300 });
    const named = gate.request(2001, { delay_ms: 300 }, { id: "buy-1" });
    await gate.request(3001);
    proxy.cut();
    await refused(plain, { reason: "LOST", maybeRan: true });
    assert.deepEqual(await named, { delay_ms: 300 });
    assert.equal(isResumable, false);
    assert.notEqual(gate.session.id, id);
    assert.deepEqual(told, []);
    proxy.stop();
  },
};

/** The gateway is stopped, and another one started, when this says so. */
const restarts = {
  async a_restart_is_told_and_got_over() {
    const gate = connect(url);
    await gate.open();
    assert.equal(await count(gate), 1);
    const { room, got, told } = await member(url, "room:restarts");
    await room.publish(7001, "before", { toMe: true });
    await until("it came", () => got.length === 1);
    const outcomes = Promise.all([event(gate, "draining"), event(gate, "lost")]);
    console.log("restart the gateway");
    const [{ reconnectAfterMs }, { reason }] = await outcomes;
    assert.ok(reconnectAfterMs > 0);
    assert.equal(reason, "RESTARTED");
    assert.equal(await count(gate), 1);
    // The group is another one: what was missed cannot be known, and is told as a gap.
    await until("it is in the group again", () => told.includes("gap"));
    await room.publish(7001, "after", { toMe: true });
    await until("it came, too", () => got.length === 2);
    assert.deepEqual([got, told], [[[1, "before"], [1, "after"]], ["joined", "gap"]]);
  },
};

// ---- The files.

const files = {
  async the_library_is_small() {
    const served = await (await fetch(args.served)).text();
    const bytes = gzipSync(served, { level: 9 }).length;
    assert.ok(bytes <= 8_192, `${bytes} bytes gzipped`);
  },

  async it_needs_nothing_else() {
    const text = readFileSync(new URL("shardgate.js", library), "utf8");
    assert.ok(!/\bimport\b|\brequire\b|\bprocess\b|\bBuffer\b/.test(text));
  },

  async the_types_are_strict() {
    // Deno has a TypeScript compiler in it.
    const packages = (process.env.NODE_PATH ?? "").split(":");
    const deno = packages.map((dir) => join(dir, ".bin/deno")).find(existsSync);
    if (!deno) return console.log("skipped: the types are checked where deno is (NODE_PATH)");
    const dir = mkdtempSync(join(tmpdir(), "shardgate-types-"));
    for (const name of ["shardgate.js", "shardgate.d.ts"]) {
      writeFileSync(join(dir, name), readFileSync(new URL(name, library)));
    }
    writeFileSync(join(dir, "use.ts"), USE);
    const compilerOptions = { lib: ["esnext", "dom"], strict: true };
    writeFileSync(join(dir, "deno.json"), JSON.stringify({ compilerOptions }));
    const env = { ...process.env, DENO_DIR: dir, DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1" };
    try {
      execFileSync(deno, ["check", "--no-lock", "use.ts"], { cwd: dir, env, stdio: "pipe" });
    } catch (error) {
      assert.fail(String(error.stderr));
    } finally {
      rmSync(dir, { recursive: true });
    }
  },
};

const USE = `
// @ts-types="./shardgate.d.ts"
import { Gateway, GatewayError, type Group, type Outcome, type State } from "./shardgate.js";
const gate = new Gateway(new URL("wss://host/ws"), {
  token: async (why) => (why === "bad" ? null : "token"),
  reconnect: { minMs: 1 }, queue: { items: 1 }, WebSocket, network: window, persist: sessionStorage,
});
const off: () => void = gate.on("state", (state: State, error) => error?.code.toFixed());
gate.on("lost", ({ session, reason }: Outcome) => session + reason);
gate.on("message", async (message) => message.type.length + message.msgId);
gate.open().then(() => gate.session?.user.length);
const room: Group = gate.group("room:7", { presence: true, since: { epoch: "e", offset: 1 } });
room.on("presence", ({ people }) => people.map(({ user, info }) => user + info));
room.on("push", async ({ payload, from }) => payload.text + from?.length);
gate.onPush(7001, ({ offset = 0, group }) => offset + (group ?? ""));
const { offset } = await room.publish(7001, { text: "hi" }, { toMe: true, key: "k", id: true });
const { pushes } = await room.history({ limit: offset, newestFirst: true });
pushes.map(({ unixMs, msgId }) => unixMs + msgId + (room.position?.offset ?? 0));
const reply = await gate.request<{ n: number }>(1, new Uint8Array(1), { id: true, timeoutMs: 5 });
const sent: boolean = gate.send(1, { n: reply.n }, { volatile: true });
try { gate.cut(); off(); } catch (e) { if (e instanceof GatewayError && e.maybeRan) gate.close(); }
// @ts-expect-error: no such event
gate.on("opened", () => {});
// @ts-expect-error: pushes of all groups have no event but their id
gate.on("push", () => {});
// @ts-expect-error: one-way messages have no answer to wait for
gate.send(1, null, { timeoutMs: 5 });
// @ts-expect-error: an id is a text
gate.request(1, null, { id: 7 });
`;

// ---- All of a group, one after the other.

const groups = { files, alone, asks, tokens, survives, rooms, forgets, without, restarts };
let failed = 0;
for (const [name, run] of Object.entries(groups[group]).filter(([name]) => (args.only ?? name) === name)) {
  const clock = new Clock();
  const late = setTimeout(() => {
    console.log(`FAILED ${name}: no end in 50 s`);
    process.exit(1);
  }, 50_000);
  try {
    if (group === "alone") clock.install();
    await run(clock);
    console.log(`ok ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED ${name}: ${error.stack}`);
  } finally {
    if (group === "alone") clock.remove();
    clearTimeout(late);
    for (const gate of gates.splice(0)) gate.close();
  }
}
console.log(failed ? `${failed} failed` : "all as it should be");
process.exit(failed ? 1 : 0);

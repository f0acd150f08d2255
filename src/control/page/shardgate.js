/**
 * Client of the shardgate WebSocket gateway (subprotocol shardgate.v1.json), for browsers and
 * Node >= 22. Requests and their answers survive broken connections. Types: shardgate.d.ts.
 */

/** Seqs of `auth` and `resume` on every connection; those of the program's messages are above. */
const AUTH = 1, RESUME = 2;
/** Close code of a break on purpose: unlike 1000 it leaves the session at the gateway. */
const BREAK = 4900;
/** Times to a ready session, to the answer to a ping, from a message to its ack, and after which a
 * connection counts as stable. */
const READY_MS = 10_000, PING_MS = 5_000, ACK_MS = 1_000, STABLE_MS = 10_000;
/** Ids of the gateway, as numbers in its own range. */
const JOIN = 10, LEAVE = 11, MEMBERS = 13, HISTORY = 14, PUBLISH = 15;
/** Messages of the gateway about a group. */
const OF_GROUPS = ["joined", "left", "gap", "presence"];
/** Longest time that a timer takes. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Reasons of the gateway with which a service may have run the message. */
const MAY_HAVE_RUN = ["OUTCOME_UNKNOWN", "DUPLICATE", "BAD_SERVICE_REPLY", "INTERNAL"];
/** Reasons of this library, with their statuses and texts. */
const FAILURES = {
  ABORTED: [1, "aborted by its signal"],
  LOST: [2, "the session is lost: the message may have run"],
  BAD_MESSAGE: [3, "msgId must be a whole number from 1 to 4294967295"],
  TIMEOUT: [4, "no answer within timeoutMs"],
  EXPIRED: [4, "not sent within queue.maxAgeMs"],
  QUEUE_FULL: [8, "queue.items or queue.bytes wait already: send less, or later"],
  TOO_LARGE: [8, "over message_bytes_max of the gateway: send less"],
  BROKEN: [14, "the connection broke"],
  CLOSED: [14, "the gate is closed: call open()"],
};

const now = () => performance.now();
const utf8 = new TextEncoder();

const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const payloadOf = ({ payload, payload_base64: base64 }) =>
  base64 === undefined ? payload : Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
const messageOf = ({ msg_id: msgId = 0, payload_base64, ...m }) =>
  ({ ...m, msgId, payload: payloadOf({ ...m, payload_base64 }) });
const payloadIn = (payload) =>
  payload instanceof Uint8Array ? { payload_base64: toBase64(payload) } : { payload };
/** 128 random bits. Pages without TLS have no crypto.randomUUID. */
const newId = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

export class GatewayError extends Error {
  name = "GatewayError";

  constructor(reason, message, { cause, ...more } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    Object.assign(this, { status: 0, reason, retryAfterMs: 0, maybeRan: false, code: 0 }, more);
  }
}

const failure = (reason, more, message = FAILURES[reason][1]) =>
  new GatewayError(reason, message, { status: FAILURES[reason][0], ...more });
/** The error that a message of the gateway tells. */
const refusal = (m) =>
  new GatewayError(m.reason ?? "", m.message || m.reason || `status ${m.status}`, {
    status: m.status ?? 0,
    retryAfterMs: m.retry_after_ms ?? 0,
    maybeRan: !m.reason || MAY_HAVE_RUN.includes(m.reason),
    payload: payloadOf(m),
  });

/** Offsets of what came: of a session, or of a group. */
class Offsets {
  #working = new Set(); // of listeners that have not ended, the lowest first
  seen = 0; // the highest
  from = 0; // what came later is above it, as the gateway said

  /** The highest up to which all listeners have ended. */
  get done() {
    for (const lowest of this.#working) return lowest - 1;
    return Math.max(this.seen, this.from);
  }

  /** Gives a message to its listeners, unless it came before. */
  take(offset, give, then) {
    if (!offset) return give();
    if (offset <= this.seen) return;
    this.seen = offset;
    this.#working.add(offset);
    const done = () => this.#working.delete(offset) && then();
    const ended = give();
    ended ? ended.then(done) : done();
  }
}

export class Gateway {
  #url;
  #options;
  #listeners = {};
  #timers = {};
  #state = "idle";
  #opening; // { promise, resolve, reject } of open()
  #generation = 0; // rises with each connection: nothing of an older one is heard
  #conn; // { ws, welcome, auth, resumed }: the socket, and what the gateway said first
  #ready = false; // it has said all of that: messages may be sent
  #isDraining = false;
  #session;
  #key; // { session, secret, boot }: goes on with the session on another connection
  #lost = ""; // why there is no such session any more, until the program is told
  #seq = RESUME;
  #offsets = new Offsets();
  #groups = new Map(); // name -> what is known of the group
  #acked = 0; // highest offset acked on this connection
  #flight = new Map(); // seq -> request that the gateway has not answered, the lowest first
  #queue = []; // messages that wait for a session, or for room in flight
  #queueBytes = 0;
  #token;
  #why = "first"; // why the next token is asked for; empty: the present one will do
  #wasBad = false; // the last token was refused
  #tries = 0;
  #readyAt = Infinity;
  #heard = 0; // when the last frame came
  #pauseMs = 0; // least pause before the next connection, by the gateway
  #notBefore = 0;
  #isOffline = false;

  constructor(url, options = {}) {
    this.#url = String(url);
    this.#options = {
      resume: true,
      timeoutMs: 5_000,
      network: globalThis,
      gatewayIds: 9_000,
      ...options,
      reconnect: { minMs: 500, maxMs: 20_000, ...options.reconnect },
      queue: { items: 100, bytes: 65_536, maxAgeMs: 30_000, ...options.queue },
    };
  }

  get state() {
    return this.#state;
  }

  get session() {
    return this.#session;
  }

  onPush(msgId, listener) {
    return this.on(`push ${msgId}`, listener);
  }

  group(name, { presence, since } = {}) {
    const group = this.#group(name);
    group.presence ||= !!presence;
    if (since && !group.epoch) this.#place(group, since);
    return group.room;
  }

  on(event, listener) {
    (this.#listeners[event] ??= new Set()).add(listener);
    return () => void this.#listeners[event].delete(listener);
  }

  open() {
    if (this.#state === "idle" || this.#state === "closed") {
      const opening = (this.#opening = {});
      opening.promise = new Promise((...both) => ([opening.resolve, opening.reject] = both));
      opening.promise.catch(() => {}); // for callers who do not wait: the events tell it, too
      this.#restore();
      this.#watchNetwork("addEventListener");
      this.#connect();
    }
    return this.#opening.promise;
  }

  close() {
    if (this.#state !== "closed") this.#end(failure("CLOSED"), 1000);
  }

  cut() {
    if (this.#conn) this.#break(failure("BROKEN", {}, "cut() was called"));
  }

  request(msgId, payload, { id, key, timeoutMs = this.#options.timeoutMs, ...more } = {}) {
    const { signal } = more;
    return new Promise((resolve, reject) => {
      const item = this.#item(msgId, payload, id === true ? newId() : id, key);
      const abort = () => this.#fail(item, "ABORTED", { cause: signal.reason });
      Object.assign(item, more, { resolve, reject, due: item.at + timeoutMs, abort });
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort);
      const reason = this.#submit(item);
      if (reason) this.#fail(item, reason);
    });
  }

  send(msgId, payload, { id, key, volatile = false } = {}) {
    return !this.#submit(this.#item(msgId, payload, id, key), volatile);
  }

  // Messages of the program.

  #item(msgId, payload, id, key) {
    if (!Number.isInteger(msgId) || msgId < 1 || msgId >= 2 ** 32) throw failure("BAD_MESSAGE");
    // As text, and now: the program may change the value before it is sent, or sent again.
    const fields = { ...payloadIn(payload), id: id || undefined, key: key || undefined };
    const tail = JSON.stringify(fields).slice(1, -1).replace(/^./, ",$&");
    return { msgId, id, tail, bytes: utf8.encode(tail).length, at: now(), seq: 0 };
  }

  /** Sends a message or lets it wait, in the order of the calls. Returns why it does neither. */
  #submit(item, isVolatile) {
    if (this.#state === "closed") return "CLOSED";
    const { items, bytes, maxAgeMs } = this.#options.queue;
    // Nothing else bounds one-way messages that the network does not take.
    if (!item.resolve && this.#conn?.ws.bufferedAmount > bytes) return "QUEUE_FULL";
    if ((item.isFirst || !this.#queue.length) && this.#mayGo(item)) return this.#transmit(item);
    if (item.isFirst) return this.#enqueue("unshift", [item]);
    // One-way messages have no timer.
    const isOld = (other) => !other.resolve && now() - other.at > maxAgeMs;
    this.#queue.filter(isOld).forEach((old) => this.#unqueue(old));
    const isFull = this.#queue.length >= items || this.#queueBytes + item.bytes > bytes;
    if (isVolatile || isFull) return "QUEUE_FULL";
    this.#enqueue("push", [item]);
  }

  #enqueue(how, items) {
    this.#queue[how](...items);
    for (const item of items) {
      this.#queueBytes += item.bytes;
      item.isQueued = true;
      this.#setTimer(item);
    }
  }

  #unqueue(item) {
    if (!item.isQueued) return;
    item.isQueued = false;
    this.#queue.splice(this.#queue.indexOf(item), 1);
    this.#queueBytes -= item.bytes;
  }

  #mayGo(item) {
    if (!this.#ready || this.#isDraining) return false;
    // One less than allowed: with all of them the gateway stops reading until half are answered.
    const max = Math.max(1, this.#conn.welcome.limits.unanswered_max - 1);
    return !item.resolve || this.#flight.size < max;
  }

  #flush() {
    for (let item; (item = this.#queue[0]) && this.#mayGo(item); ) {
      this.#unqueue(item);
      const isOld = !item.resolve && now() - item.at > this.#options.queue.maxAgeMs;
      if (!isOld) this.#go(item);
    }
  }

  #go(item) {
    const reason = this.#transmit(item);
    if (reason) item.resolve ? this.#fail(item, reason) : this.#emit("error", failure(reason));
  }

  /** Sends a message, with the seq that it had or a new one. Returns why it cannot. */
  #transmit(item) {
    const head = { msg_id: item.msgId };
    if (item.resolve) {
      head.seq = item.seq ||= ++this.#seq;
      const leftMs = Math.ceil(item.due - now());
      if (leftMs < TIMER_MS_MAX) head.deadline_ms = Math.max(1, leftMs);
    }
    if (!this.#post(head, item.tail, item.bytes)) return "TOO_LARGE";
    if (!item.resolve) return;
    item.isSent = true;
    this.#flight.set(item.seq, item);
    this.#setTimer(item);
  }

  /** Sends the fields of `head` and the text `tail`, with an ack if one is due. */
  #post(head, tail = "", tailBytes = 0) {
    const ack = this.#offsets.done;
    const hasAck = this.#ready && ack > this.#acked;
    const text = JSON.stringify(hasAck ? { ...head, ack } : head).slice(0, -1);
    if (text.length + tailBytes >= this.#conn.welcome?.limits.message_bytes_max) return false;
    this.#conn.ws.send(text + tail + "}");
    if (hasAck) this.#acked = ack;
    return true;
  }

  #setTimer(item) {
    clearTimeout(item.timer);
    if (!item.resolve) return;
    const dueMs = item.due - now();
    const oldMs = item.isQueued ? item.at + this.#options.queue.maxAgeMs - now() : Infinity;
    const ms = Math.min(dueMs, oldMs, TIMER_MS_MAX);
    item.timer = setTimeout(() => {
      this.#fail(item, oldMs < dueMs ? "EXPIRED" : "TIMEOUT");
      if (this.#heard < item.at) this.#ping();
    }, ms);
  }

  #fail(item, reason, more, message) {
    this.#settle(item, failure(reason, { maybeRan: !!item.isSent, ...more }, message));
  }

  /** Gives a request its one result; it is in flight until the gateway has answered. */
  #settle(item, error, value) {
    if (item.isSettled) return;
    item.isSettled = true;
    clearTimeout(item.timer);
    item.signal?.removeEventListener("abort", item.abort);
    this.#unqueue(item);
    if (item.mayBeMissed) this.#flight.delete(item.seq);
    error ? item.reject(error) : item.resolve(item.take ? item.take(value) : value);
    this.#flush();
  }

  /** No answer comes to what was sent. What has an id is sent again, before all others. */
  #lose() {
    const open = [...this.#flight.values()].filter((item) => !item.isSettled);
    this.#flight.clear();
    const again = open.filter((item) => item.id || item.isSafe);
    for (const item of again) Object.assign(item, { seq: 0, mayBeMissed: false, at: now() });
    this.#enqueue("unshift", again);
    for (const item of open) if (!item.isQueued) this.#fail(item, "LOST");
  }

  // Connections.

  async #connect() {
    const generation = ++this.#generation;
    const isOld = () => generation !== this.#generation;
    this.#stop("retry");
    this.#set("connecting");
    if (isOld()) return;
    const { token, resume, WebSocket = globalThis.WebSocket } = this.#options;
    let ws;
    try {
      if (token !== undefined && this.#why) {
        const next = await (typeof token === "function" ? token(this.#why) : token);
        if (isOld()) return;
        [this.#token, this.#why] = [next, ""];
      }
      if (!WebSocket) throw new TypeError("no WebSocket here: set the option");
      ws = new WebSocket(this.#url, ["shardgate.v1.json"]);
    } catch (cause) {
      const text = `cannot connect: ${cause?.message ?? cause}`;
      if (!isOld()) this.#end(failure("CLOSED", { cause }, text));
      return;
    }
    const conn = { ws, auth: this.#token == null && {}, resumed: !resume && {} };
    this.#conn = conn;
    const late = failure("BROKEN", {}, "no session in time");
    this.#after("ready", READY_MS, () => this.#break(late));
    ws.onopen = () => {
      if (isOld()) return;
      if (!conn.auth) this.#post({ type: "auth", seq: AUTH, payload: { token: this.#token } });
      const members = [...this.#groups.values()].filter((group) => group.isIn && group.epoch);
      const groups = members.map(({ name, room }) => ({ group: name, position: room.position }));
      const position = this.#key && { ...this.#key, offset: this.#offsets.done };
      if (position && groups.length) position.groups = groups;
      if (resume) this.#post({ type: "resume", seq: RESUME, payload: position ?? {} });
    };
    ws.onmessage = ({ data }) => isOld() || this.#receive(data);
    ws.onclose = ({ code, reason }) => isOld() || this.#closed(code, reason);
    // Some have no close event after a connection that never was.
    ws.onerror = () => setTimeout(() => isOld() || this.#closed(1006, ""));
  }

  #closed(code, text) {
    const error = failure("BROKEN", { code }, `closed with ${code}${text ? `: ${text}` : ""}`);
    if (code === 4004) this.#why = "expired";
    if (code === 4500) this.#why = "bad";
    const needsToken = code === 4004 || code === 4500;
    const hasNone = typeof this.#options.token !== "function" || (code === 4500 && this.#wasBad);
    if (code === 4500) this.#wasBad = true;
    const isFinal = code === 1000 || (code > 4500 && code < 5000);
    if (isFinal || (needsToken && hasNone)) return this.#end(error);
    // Another connection has the session now: taking it back would go on for ever.
    if (code === 4000) this.#forget("REPLACED");
    this.#break(error);
  }

  /** Leaves the connection behind, without waiting for its end. */
  #drop(code) {
    this.#generation++;
    this.#stop(...Object.keys(this.#timers));
    if (now() - this.#readyAt >= STABLE_MS) this.#tries = 0;
    const ws = this.#conn?.ws;
    this.#conn = undefined;
    this.#ready = this.#isDraining = false;
    this.#readyAt = Infinity;
    ws?.close(code);
  }

  #break(error) {
    this.#drop(BREAK);
    if (!this.#key) this.#lose();
    this.#notBefore = now() + this.#pauseMs;
    this.#pauseMs = 0;
    const { minMs, maxMs } = this.#options.reconnect;
    // Chance comes after the cap: before it, all would wait the same once they reach it.
    this.#retry(Math.random() * Math.min(maxMs, minMs * 2 ** this.#tries++));
    this.#set("away", error);
  }

  #retry(ms) {
    const waitMs = Math.max(ms, this.#notBefore - now());
    if (!this.#isOffline) this.#after("retry", waitMs, () => this.#connect());
  }

  #end(error, code = BREAK) {
    this.#drop(code);
    this.#watchNetwork("removeEventListener");
    this.#options.persist?.removeItem(this.#entry);
    for (const item of [...this.#flight.values(), ...this.#queue]) {
      item.resolve ? this.#fail(item, "CLOSED", {}, error.message) : this.#unqueue(item);
    }
    this.#forget("");
    for (const group of this.#groups.values()) this.#leave(group, "CLOSED");
    this.#session = undefined;
    this.#why = "first";
    this.#wasBad = this.#isOffline = false;
    this.#tries = this.#pauseMs = 0;
    this.#opening?.reject(error);
    this.#set("closed", error);
    if (code !== 1000) this.#emit("error", error);
  }

  #forget(reason) {
    this.#key = undefined;
    this.#lost = reason;
    this.#offsets = new Offsets();
    this.#lose();
  }

  // What the gateway says.

  #receive(text) {
    let m;
    try {
      m = JSON.parse(text);
    } catch {
      return this.#break(failure("BROKEN", {}, "a frame that is not JSON"));
    }
    this.#heard = now();
    if (this.#conn.isRefused) return;
    // The offset of what a group was sent is the group's.
    const offsets = m.group ? this.#group(m.group).offsets : this.#offsets;
    offsets.take(m.offset, () => this.#take(m), () => this.#ackSoon());
  }

  /** Acts on a message. Returns a promise if listeners have not ended with it. */
  #take(m) {
    const { type = "", seq = 0 } = m;
    const conn = this.#conn;
    const item = this.#flight.get(seq);
    if (type === "welcome") {
      conn.welcome = m.payload;
      this.#begin();
    } else if (type === "draining") {
      this.#isDraining = true;
      this.#pauseMs = m.payload.reconnect_after_ms ?? 0;
      this.#emit("draining", { reconnectAfterMs: this.#pauseMs });
    } else if (seq === AUTH && !conn.auth) {
      this.#answered("auth", m);
    } else if (seq === RESUME && !conn.resumed) {
      this.#answered("resumed", m);
    } else if (item) {
      this.#flight.delete(seq);
      m.status ? this.#settle(item, refusal(m)) : this.#settle(item, undefined, payloadOf(m));
      this.#flush();
    } else if (type === "error") {
      if (seq) return; // of a request whose caller has gone
      if (!this.#ready) this.#pauseMs = m.retry_after_ms ?? 0;
      this.#emit("error", refusal(m));
    } else if (OF_GROUPS.includes(type) && m.payload.group) {
      this.#takeOfGroup(type, m.payload);
    } else if (type === "gap") {
      this.#emit(type, { session: this.#session?.id, reason: "", ...m.payload });
    } else if (type && type !== "pong") {
      const events = [`push ${m.msg_id}`, `push/${m.group}`];
      const isHeard = type === "push" && events.some((name) => this.#listeners[name]?.size);
      return this.#emit(isHeard ? events : "message", messageOf(m));
    }
  }

  /** Takes the answer to `auth` or `resume`. */
  #answered(what, m) {
    if (m.type !== "error") this.#conn[what] = m.payload;
    // A gateway without tokens, or without sessions that survive: it works without them, too.
    else if (m.reason === "UNIMPLEMENTED") this.#conn[what] = m;
    else {
      const error = refusal(m);
      this.#pauseMs = error.retryAfterMs;
      if (error.retryAfterMs || m.reason === "UNAVAILABLE") return this.#break(error);
      if (what === "auth") this.#conn.isRefused = true; // the gateway closes, and the code counts
      else this.#conn.resumed = m;
      this.#emit("error", error);
    }
    this.#begin();
  }

  /** Begins to send, once the gateway has said all that is needed for it. */
  #begin() {
    const { welcome, auth, resumed } = this.#conn ?? {};
    if (this.#ready || !welcome || !auth || !resumed) return;
    const { outcome, reason = "", received_seq: read = 0, secret } = resumed;
    const isOn = outcome === "resumed" || outcome === "gap";
    if (!isOn && this.#key) this.#forget(reason || "UNKNOWN");
    const unread = [];
    for (const item of this.#flight.values()) {
      if (item.isSettled && (item.seq > read || outcome === "gap")) this.#flight.delete(item.seq);
      else if (item.seq > read) unread.push(item);
      else if (outcome === "gap") item.mayBeMissed = true;
    }
    const session = resumed.session ?? auth.session ?? welcome.session;
    this.#key = secret && { session, secret, boot: welcome.boot };
    this.#session = {
      id: session,
      user: auth.user ?? "",
      tenant: auth.tenant ?? "",
      expiresUnixS: auth.expires_unix_s ?? 0,
      node: welcome.node ?? "",
      shard: welcome.shard ?? 0,
      isResumable: !!secret,
      ttlMs: resumed.ttl_ms ?? 0,
    };
    this.#stop("ready");
    this.#readyAt = now();
    this.#acked = 0;
    this.#ready = true;
    if (auth.user) this.#wasBad = false;
    this.#enterAgain(isOn, resumed.groups);
    for (const item of unread) this.#go(item);
    this.#flush();
    this.#ackSoon();
    this.#mindSilence();
    this.#opening.resolve();
    const [event, why] = isOn ? [outcome, reason] : [this.#lost && "lost", this.#lost];
    this.#lost = "";
    this.#set("open");
    if (event && this.#ready) this.#emit(event, { session, reason: why });
  }

  #ackSoon() {
    const isDue = () => this.#ready && this.#offsets.done > this.#acked;
    const ack = () => isDue() && this.#post({ type: "heartbeat" });
    if (isDue() && !this.#timers.ack) this.#after("ack", ACK_MS, ack);
  }

  // Groups.

  #group(name) {
    let group = this.#groups.get(name);
    if (group) return group;
    const send = (id, what, options) =>
      this.request(this.#options.gatewayIds + id, { group: name, ...what }, options);
    // What is sent behind a join may come before the group's home has let the session in.
    const ask = (...what) =>
      send(...what).catch((error) => {
        if (error.reason !== "FORBIDDEN" || !group.joining) throw error;
        return group.joining.then(() => send(...what));
      });
    const room = {
      name,
      get position() {
        return group.epoch && { epoch: group.epoch, offset: group.offsets.done };
      },
      on: (event, listener) => this.on(`${event}/${name}`, listener),
      join: () => this.#join(group),
      leave: () => ask(LEAVE, {}, { isSafe: true, take: () => this.#leave(group, "") }),
      publish: (msgId, payload, { toMe, key, ...options } = {}) =>
        ask(PUBLISH, { msg_id: msgId, ...payloadIn(payload), key, to_me: toMe }, options),
      members: (page) => ask(MEMBERS, page),
      history: async ({ since, limit = 100, newestFirst } = {}) => {
        const told = await ask(HISTORY, { since, limit, newest_first: newestFirst });
        const kept = ({ unix_ms: unixMs, ...m }) => ({ ...messageOf(m), unixMs });
        return { ...told, pushes: told.pushes.map(kept) };
      },
    };
    group = { send, room, name, offsets: new Offsets(), people: new Map() };
    this.#groups.set(name, group);
    return group;
  }

  #join(group, isFirst) {
    const take = (told) => this.#enter(group, told);
    const what = { presence: group.presence, since: group.room.position };
    const joined = group.send(JOIN, what, { isFirst, isSafe: true, take });
    const done = () => void (group.joining = undefined);
    group.joining = joined.then(done, done);
    return joined;
  }

  /** The session is in the group: by a join, by a claim or a service, or still. */
  #enter(group, told) {
    const { name, isIn, room } = group;
    const was = room.position;
    Object.assign(group, { isIn: true, isComing: false, conn: this.#conn });
    this.#place(group, told.position);
    if (!isIn) this.#emit(["joined", `joined/${name}`], room);
    const { position } = room;
    // Who is put in anew by a claim has missed what came in between, too.
    const isBehind = was && (was.epoch !== position?.epoch || was.offset < position.offset);
    const isGap = told.outcome === "gap" || (told.outcome === "joined" && isBehind);
    if (isGap) this.#emit(`gap/${name}`, { group: name, dropped: 0, position, reason: "" });
    if (group.presence) this.#look(group);
    return told;
  }

  /** What follows comes after `position`. */
  #place(group, position) {
    if (group.epoch !== position?.epoch) group.offsets = new Offsets();
    group.epoch = position?.epoch;
    group.offsets.from = position?.offset;
  }

  #leave(group, reason) {
    if (!group.isIn) return;
    group.isIn = group.isComing = false;
    group.epoch = undefined;
    this.#emit(["left", `left/${group.name}`], { group: group.name, reason });
  }

  /** What became of the groups after a break. */
  #enterAgain(isOn, outcomes = []) {
    const kept = outcomes.filter(({ outcome }) => outcome !== "lost");
    for (const told of kept) this.#enter(this.#group(told.group), told);
    for (const group of this.#groups.values()) {
      if (group.conn === this.#conn) continue;
      isOn && !group.isComing ? this.#leave(group, "LOST") : this.#joinAgain(group);
    }
  }

  #joinAgain(group) {
    if (!group.isIn) return;
    group.isComing = true;
    this.#join(group, true).catch(({ reason, status, retryAfterMs }) => {
      const isLater = retryAfterMs || status === 4;
      if (!isLater) return this.#leave(group, reason);
      this.#after(`join ${group.name}`, retryAfterMs || ACK_MS, () => this.#joinAgain(group));
    });
  }

  /** Reads who is there. Where names are told to nobody this is refused, and there is the count. */
  #look(group, count) {
    const take = ({ members, count }) => {
      group.people.clear();
      this.#presence(group, { count, joined: members });
    };
    group.send(MEMBERS, {}, { take }).catch(({ reason }) => {
      if (count && reason === "FORBIDDEN") this.#presence(group, { count });
    });
  }

  #presence(group, { count, joined = [], left = [] }) {
    const { people } = group;
    for (const person of joined) people.set(person.user || person.session, person);
    for (const person of left) people.delete(person.user || person.session);
    const told = { count, joined, left, people: [...people.values()] };
    this.#emit(`presence/${group.name}`, told);
  }

  /** Takes what the gateway says of a group. */
  #takeOfGroup(type, told) {
    const group = this.#group(told.group);
    if (type === "joined") this.#enter(group, told);
    else if (type === "left") this.#leave(group, told.reason);
    else if (told.reset) this.#look(group, told.count);
    else if (type === "presence") this.#presence(group, told);
    else {
      this.#place(group, told.position ?? group.room.position);
      this.#emit(`gap/${told.group}`, told);
    }
  }

  // Silence and the network.

  get #isHidden() {
    return this.#options.network?.document?.visibilityState === "hidden";
  }

  /** The gateway pings, which a program cannot see: silence alone does not say that it is gone. */
  #mindSilence() {
    const mostMs = 1.5 * this.#conn.welcome.heartbeat_ms;
    const leftMs = this.#heard + mostMs - now();
    if (leftMs <= 0) this.#ping();
    this.#after("silence", leftMs > 0 ? leftMs : mostMs, () => this.#mindSilence());
  }

  /** Asks the gateway whether it is there. Timers of a hidden page are late: it asks later. */
  #ping() {
    if (!this.#ready || this.#timers.ping || this.#isHidden) return;
    const asked = now();
    this.#post({ type: "ping", seq: ++this.#seq });
    this.#after("ping", PING_MS, () => {
      const isGone = this.#heard < asked && !this.#isHidden;
      if (isGone) this.#break(failure("BROKEN", {}, "no answer to a ping"));
    });
  }

  #watchNetwork(method) {
    const { network } = this.#options;
    for (const event of ["online", "offline", "pagehide", "pageshow"]) {
      network?.[method]?.(event, this.#onNetwork);
    }
    network?.document?.[method]?.("visibilitychange", this.#onNetwork);
  }

  #onNetwork = ({ type }) => {
    if (type === "pagehide") return this.#save();
    if (type === "pageshow") return this.#options.persist?.removeItem(this.#entry);
    this.#isOffline = type === "offline" || (this.#isOffline && type !== "online");
    if (type === "offline") return this.#break(failure("BROKEN", {}, "the network is gone"));
    if (type === "visibilitychange" && this.#isHidden) return;
    this.#tries = 0;
    this.#state === "away" ? this.#retry(0) : this.#ping();
  };

  // What outlives a reload of the page. It is stored only while no page uses it, so that the copy
  // in a duplicated tab finds nothing.

  get #entry() {
    return `shardgate ${this.#url}`;
  }

  #save() {
    if (!this.#key) return;
    const kept = { ...this.#key, offset: this.#offsets.done, seq: this.#seq };
    try {
      this.#options.persist?.setItem(this.#entry, JSON.stringify(kept));
    } catch (error) {
      this.#emit("error", error); // the storage is full, or forbidden
    }
  }

  #restore() {
    const text = this.#options.persist?.getItem(this.#entry);
    if (!text) return;
    this.#options.persist.removeItem(this.#entry);
    const { offset, seq, ...key } = JSON.parse(text);
    this.#key = key;
    this.#offsets.seen = offset;
    this.#seq = Math.max(seq, this.#seq);
  }

  // Events and timers.

  #set(state, error) {
    if (this.#state === state) return;
    this.#state = state;
    this.#emit("state", state, error);
  }

  /** Calls the listeners of one event, or of several. Returns a promise if some of them have not ended. */
  #emit(event, ...what) {
    const wrong = (error) => {
      const isHeard = event !== "error" && this.#listeners.error?.size;
      isHeard ? this.#emit("error", error) : console.error(error);
    };
    const running = [];
    for (const listener of [event].flat().flatMap((name) => [...(this.#listeners[name] ?? [])])) {
      try {
        const result = listener(...what);
        if (typeof result?.then === "function") running.push(Promise.resolve(result).catch(wrong));
      } catch (error) {
        wrong(error);
      }
    }
    return running.length ? Promise.all(running) : undefined;
  }

  #after(name, ms, action) {
    clearTimeout(this.#timers[name]);
    const timer = () => {
      delete this.#timers[name];
      action();
    };
    this.#timers[name] = setTimeout(timer, Math.min(ms, TIMER_MS_MAX));
  }

  #stop(...names) {
    for (const name of names) {
      clearTimeout(this.#timers[name]);
      delete this.#timers[name];
    }
  }
}

// The try-it page: it connects by the client library, and shows what is said on the line. Whatever
// comes from the network is put into the page as text.

import { Gateway } from "/client.js";

const $ = (id) => document.getElementById(id);

/** Lines that the log keeps. */
const LINES_MAX = 200;
/** Characters that are shown of a text in the log, and of the last answer. */
const LOG_TEXT_MAX = 400;
const ANSWER_TEXT_MAX = 20_000;
/** Id of the pushes that bring a line of a room, as in the demo service chat. */
const LINE_ID = 2100;
/** Lines of a room that are shown, and that are read of those that came before. */
const ROOM_LINES_MAX = 200;
const EARLIER_MAX = 20;
/** Names of who is there that are shown. */
const NAMES_MAX = 12;
/** Seconds without a network, for who asks to see that. */
const OFFLINE_S = 5;
/** Names of the canonical gRPC codes (google.rpc.Code), in their order. */
const STATUSES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
];
/** Words and colours of the states. */
const STATES = {
  idle: ["idle: nothing is open", ""],
  connecting: ["connecting …", "wait"],
  open: ["connected", "good"],
  away: ["the line is cut; coming back …", "wait"],
  closed: ["closed", ""],
};
/** What the outcomes of a resume mean. */
const OUTCOMES = {
  new: "a new session, which can be resumed",
  resumed: "the same session, and nothing was missed",
  gap: "the same session, and some answers are missing",
  lost: "the session is gone; this is a new one",
};

/** Examples; an id of "service" is the first one of a service that is there. */
const EXAMPLES = [
  { name: "Echo", payload: '{"text": "hello"}' },
  { name: "Slow: an answer after 3 s", payload: '{"text": "slow", "delay_ms": 3000}', isDemo: true },
  { name: "A failure that the service chose", payload: '{"fail": 9}', isDemo: true },
  { name: "What the service is told", payload: '{"who": true}', isDemo: true },
  { name: "A count for each key", payload: '{"count": true}', key: "room:7", isDemo: true },
  { name: "An id that no service has", payload: '{"text": "anybody?"}', id: 77 },
  { name: "Who am I? The gateway answers", payload: "null", id: 9002 },
];

let gate = null;
/** The group whose lines are shown, and whether this client is in it. */
let room = null;
let isIn = false;
/** First id that the gateway answers itself, and an id of the demo service chat, if it is there. */
let firstOwn = 9000;
let chatId = 0;
/** Whether a connection of this gate was ever complete. */
let wasOpen = false;
let isOffline = false;
/** When the present attempt to connect began. */
let connecting = 0;
let repeating = 0;
let serviceId = 1001;
const counts = { sent: 0, answered: 0, waiting: 0, without: 0 };
/** The frame that is being taken: an answer is settled while it is. */
let frame = null;
let position = 0;
let session = "";

/** Events of the network, of which the page makes some itself. */
const network = Object.assign(new EventTarget(), { document });
for (const event of ["online", "offline"]) {
  addEventListener(event, () => isOffline || network.dispatchEvent(new Event(event)));
}

// The log.

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
});

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

/** Adds a line: a chip, facts, a sentence, and a text as code. */
function log(kind, chip, facts = "", why = "", code = "") {
  const list = $("log");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const line = element("div", kind);
  const now = new Date();
  const time = element("time", "", clock.format(now));
  time.dateTime = now.toISOString();
  const body = element("div");
  body.append(element("span", "chip", chip));
  if (facts) body.append(" ", element("span", "facts", facts));
  if (why) body.append(" ", element("span", "why", why));
  if (code) body.append(" ", element("code", "", short(code, LOG_TEXT_MAX)));
  line.append(time, body);
  list.append(line);
  while (list.childElementCount > LINES_MAX) list.firstElementChild.remove();
  $("empty").hidden = true;
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

const short = (text, max) => (text.length > max ? `${text.slice(0, max)} … (${text.length} characters)` : text);
const statusName = (status) => STATUSES[status] ?? `status ${status}`;
const ms = (from) => `${(performance.now() - from).toFixed(1)} ms`;

function notice(text, isBad) {
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", Boolean(isBad));
  $("notice").hidden = !text;
}

// The line: frames as they are sent and received.

/** A frame as it is shown: without the token, and without the secret of the session. */
function shown(text) {
  try {
    const message = JSON.parse(text);
    if (!message.type) return text;
    for (const name of ["token", "secret"]) {
      if (message.payload?.[name]) message.payload[name] = "…";
    }
    return JSON.stringify(message);
  } catch {
    return `${text.length} characters that are no JSON`;
  }
}

/** The browser's WebSocket, and what is said on it. */
class Line extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols);
    this.addEventListener("message", ({ data }) => this.#take(data));
    this.addEventListener("close", ({ code, reason }) => {
      // 1006 is the browser's word for an end without a Close frame.
      const said = code === 1006 ? "no Close frame came" : `code ${code}${reason && `, ${reason}`}`;
      log("line", "socket closed", said);
      if (code === 1006 && !wasOpen) explainRefusal();
    });
    this.addEventListener("open", () => log("line", "socket open", this.url));
  }

  send(data) {
    if ($("frames").checked) log("frame", "→", "", "", shown(String(data)));
    super.send(data);
  }

  #take(data) {
    if ($("frames").checked) log("frame", "←", "", "", shown(String(data)));
    try {
      frame = JSON.parse(data);
    } catch {
      return;
    }
    // Timers run when all listeners of this frame have.
    setTimeout(() => (frame = null));
    const { type, payload, offset } = frame;
    if (offset > position && !frame.group) showPosition(offset);
    if (type === "resumed") showOutcome(payload ?? {});
  }
}

function showSession(told) {
  session = told;
  $("session").textContent = told;
  showExplain();
}

function showPosition(offset) {
  position = offset;
  $("position").textContent = offset ? `offset ${offset}` : "none yet";
}

function showOutcome({ outcome, reason, received_seq: receivedSeq = 0, offset = 0, groups = [] }) {
  if (outcome === "new" || outcome === "lost") showPosition(offset);
  $("outcome").textContent = `${outcome}${reason ? `, ${reason}` : ""}: ${OUTCOMES[outcome] ?? "unknown"}`;
  if (outcome === "new") return;
  const kind = { resumed: "good", gap: "wait" }[outcome] ?? "bad";
  const facts = `messages up to #${receivedSeq} had arrived, answers up to offset ${offset} were given`;
  log(kind, reason ? `${outcome}, ${reason}` : outcome, `${OUTCOMES[outcome]}; ${facts}`);
  for (const { group, outcome, position } of groups) {
    const follows = `pushes after offset ${position?.offset ?? 0} follow`;
    log(outcome === "gap" ? "wait" : kind, `${group}: ${outcome}`, follows);
    if (group === room?.name && outcome === "resumed") tellRoom(`back: ${follows}`);
  }
}

function explainRefusal() {
  notice(
    `There is no connection yet: is a gateway listening at this URL? If its log says origin_refused, it takes no page ` +
      `of this origin: add "${location.origin}" to its key origins.`,
    true,
  );
}

// The connection.

function showState() {
  const state = gate?.state ?? "idle";
  let [word, kind] = STATES[state];
  if (state === "away" && !wasOpen) word = "no connection yet; trying again …";
  if (isOffline) [word, kind] = ["offline; coming back …", "bad"];
  $("state-word").textContent = word;
  $("state").className = `state ${kind}`;
  const isOpened = state !== "idle" && state !== "closed";
  $("url").readOnly = isOpened;
  // A button that is disabled would lose the focus of who uses the keyboard.
  const off = { open: isOpened, close: !isOpened, cut: state !== "open", offline: !isOpened || isOffline };
  for (const id in off) $(id).setAttribute("aria-disabled", String(off[id]));
}

function connect() {
  const url = $("url").value.trim();
  const why = urlProblem(url);
  tell("url", "url-hint", why ?? urlHint, Boolean(why));
  if (why) return false;
  notice("");
  wasOpen = false;
  const token = (why) => {
    if (why === "bad") throw new Error("the gateway refused the token: type another one, or none");
    return $("token").value.trim() || null;
  };
  gate = new Gateway(url, { token, WebSocket: Line, network, gatewayIds: firstOwn });
  gate.on("state", onState);
  gate.on("joined", ({ name }) => log("good", "in a group", name));
  gate.on("left", ({ group, reason }) => log(reason ? "bad" : "", "out of a group", group, reason));
  gate.on("message", (push) => log("", push.type, pushFacts(push), "", textOf(push.payload)));
  gate.on("draining", () => log("wait", "draining", "the gateway stops; the library comes back by itself"));
  gate.on("error", (error) => log("bad", error.reason || "error", error.message));
  gate.open().catch(() => "told by the state");
  return true;
}

function onState(state, error) {
  if (state === "open") {
    wasOpen = true;
    notice("");
    const { id, user, tenant, node, shard, isResumable } = gate.session;
    showSession(id);
    const who = [user && `user ${user}`, tenant && `tenant ${tenant}`];
    const facts = [`node ${node}`, `shard ${shard}`, ...who, ms(connecting)];
    log("good", "connected", facts.filter(Boolean).join(" · "));
    if (!isResumable) $("outcome").textContent = "impossible: this gateway ends a session with its connection";
  }
  if (state === "connecting") connecting = performance.now();
  if (state === "away") log("wait", "away", error.message);
  if (state === "away" && isIn) tellRoom("the line is cut …");
  if (state === "closed") {
    stopRepeating();
    // Without a code or a cause it was the button.
    if (error.code || error.cause) notice(`The connection has ended: ${error.message}.`, true);
    log("", "closed", session && "the session has ended with it");
  }
  showState();
}

function urlProblem(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return "This is no URL: write ws://host:port/path, as the gateway says when it starts.";
  }
  if (!["ws:", "wss:"].includes(url.protocol)) return "The URL of a WebSocket begins with ws:// or wss://.";
  if (url.hash) return "The URL of a WebSocket has no # part.";
  const isNear = ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
  if (location.protocol === "https:" && url.protocol === "ws:" && !isNear) {
    return "This page came by https, so that browsers let it connect by wss:// only.";
  }
  return null;
}

/** Shows a hint of a field, or what is wrong with it. */
function tell(field, hint, text, isWrong) {
  $(hint).textContent = text;
  $(hint).classList.toggle("bad", isWrong);
  if (!isWrong) return $(field).removeAttribute("aria-invalid");
  $(field).setAttribute("aria-invalid", "true");
  $(field).focus();
}

function goOffline() {
  isOffline = true;
  log("bad", "offline", `for ${OFFLINE_S} s, as if the network were gone`);
  network.dispatchEvent(new Event("offline"));
  showState();
  setTimeout(() => {
    isOffline = false;
    log("good", "online", "the network is back");
    network.dispatchEvent(new Event("online"));
    showState();
  }, OFFLINE_S * 1000);
}

// Messages.

const PAYLOAD_HINT = $("payload-hint").textContent;
const GROUP_HINT = $("group-hint").textContent;

/** The message in the form, or null when something in it is wrong. */
function message() {
  const text = $("payload").value.trim();
  let payload;
  let why = "";
  try {
    payload = text === "" ? undefined : JSON.parse(text);
  } catch (error) {
    why = `This is no JSON: ${error.message}.`;
  }
  tell("payload", "payload-hint", why || PAYLOAD_HINT, why !== "");
  if (why || !$("message").reportValidity()) return null;
  const options = {};
  if ($("key").value) options.key = $("key").value;
  if ($("id").value) options.id = $("id").value;
  return { msgId: $("msg-id").valueAsNumber, payload, options };
}

const isLive = () => gate && !["idle", "closed"].includes(gate.state);

function send() {
  const asked = message();
  if (!asked) return stopRepeating();
  if (!isLive() && !connect()) return stopRepeating();
  const start = performance.now();
  count("sent", 1);
  count("waiting", 1);
  gate.request(asked.msgId, asked.payload, { timeoutMs: 30_000, ...asked.options }).then(
    (payload) => answered(asked, start, { status: 0, reason: "", payload }),
    (error) => answered(asked, start, error),
  );
}

/** A payload as text: JSON, or what bytes were on the line. */
const textOf = (payload, space) =>
  payload instanceof Uint8Array ? `${payload.length} bytes` : JSON.stringify(payload, null, space) ?? "";

function answered({ msgId }, start, { status, reason, message: text = "", maybeRan, payload }) {
  const kind = status === 0 ? "good" : "bad";
  // An answer of the gateway is settled while its frame is taken; the library's own words are not.
  const isOfFrame = frame?.seq > 0 && (frame.status ?? 0) === status && (frame.reason ?? "") === reason;
  count("waiting", -1);
  count(isOfFrame ? "answered" : "without", 1);
  const ofGateway = () => [`#${frame.seq}`, frame.offset && `offset ${frame.offset}`];
  const origin = isOfFrame ? ofGateway() : ["not sent by the gateway"];
  const words = status === 0 ? "OK" : [statusName(status), reason].filter(Boolean).join(" · ");
  const facts = [`id ${msgId}`, ...origin, ms(start)].filter(Boolean).join(" · ");
  const said = text === reason || text === `status ${status}` ? "" : text;
  const why = `${said}${maybeRan && reason ? " (it may have run)" : ""}`;
  log(kind, words, facts, why, textOf(payload));
  $("last").hidden = false;
  $("last-status").textContent = words;
  $("last-status").className = `chip ${kind}`;
  $("last-facts").textContent = facts;
  const told = [why, textOf(payload, 2)].filter(Boolean).join("\n");
  $("last-payload").textContent = short(told, ANSWER_TEXT_MAX) || "no payload";
}

function count(name, n) {
  counts[name] += n;
  const { sent, answered, waiting, without } = counts;
  const more = without ? `, ${without} without an answer` : "";
  $("counts").textContent = `${sent} sent, ${answered} answered, ${waiting} waiting${more}`;
}

function stopRepeating() {
  clearInterval(repeating);
  repeating = 0;
  $("repeat").checked = false;
}

// The room.

const pushFacts = ({ msgId, group, offset, id, from }) => {
  const facts = [group, msgId > 0 && `id ${msgId}`, offset > 0 && `offset ${offset}`, id, from && `from ${from}`];
  return facts.filter(Boolean).join(" · ");
};

/** How somebody is called here: sessions differ in their last characters. */
function nameOf(who) {
  if (who === gate.session?.user || who === gate.session?.id) return "you";
  return /^[0-9a-z]{16}$/.test(who) ? `guest ${who.slice(-4)}` : who;
}

function addToRoom(line, isFirst) {
  const list = $("room");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.hidden = false;
  isFirst ? list.prepend(line) : list.append(line);
  while (list.childElementCount > ROOM_LINES_MAX) list.firstElementChild.remove();
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

/** Adds a line that somebody said. Who publishes by 9015 is told by the gateway, else by the service. */
function addLine({ payload, offset, from, msgId }, isFirst) {
  const who = nameOf(from || String(payload?.from ?? "a service"));
  const words = typeof payload?.text === "string" ? payload.text : textOf(payload);
  const line = element("p", who === "you" ? "own" : "");
  const said = element("span");
  said.append(element("b", "", who), " ", short(words, LOG_TEXT_MAX));
  if (msgId !== LINE_ID) said.append(" ", element("span", "quiet", `(id ${msgId})`));
  line.append(said, element("span", "offset", offset ? `#${offset}` : ""));
  addToRoom(line, isFirst);
}

const tellRoom = (text, kind = "") => addToRoom(element("p", `told ${kind}`, text));

function showRoom() {
  const at = isIn ? room.position : undefined;
  $("group-position").textContent = at ? `${room.name}, offset ${at.offset}` : "none yet";
  $("enter").textContent = isIn ? "Leave" : "Join";
  $("group").readOnly = isIn;
}

function showPeople({ count, people }) {
  const names = people.slice(0, NAMES_MAX).map(({ user, session, away }) => `${nameOf(user || session)}${away ? " (away)" : ""}`);
  const rest = count > names.length ? [`${count - names.length} more`] : [];
  $("people").textContent = `${count} here: ${[...names, ...rest].join(", ")}`;
}

const known = new WeakSet();

/** The group of this name, with its listeners: the library has one object for each name. */
function roomOf(name) {
  const found = gate.group(name, { presence: true });
  if (known.has(found)) return found;
  known.add(found);
  const only = (action) => (what) => found === room && action(what);
  found.on("push", (push) => {
    log("", "push", pushFacts(push), "", textOf(push.payload));
    if (found !== room) return;
    addLine(push);
    setTimeout(showRoom); // the position moves when this has returned
  });
  found.on("gap", only(({ dropped, reason }) => {
    const many = dropped ? `${dropped} pushes are missing` : "some pushes are missing";
    tellRoom(`${many}${reason && `, ${reason}`}`, "bad");
    showRoom();
  }));
  found.on("presence", only(showPeople));
  found.on("joined", only(() => {
    isIn = true;
    $("people").textContent = "You are here.";
    showRoom();
  }));
  found.on("left", only(({ reason }) => {
    isIn = false;
    $("people").textContent = "You are not here.";
    tellRoom(reason ? `out of ${name}: ${reason}` : `you left ${name}`, reason && "bad");
    showRoom();
  }));
  return found;
}

/** Goes into the group. Returns whether it is in. */
async function join() {
  if (!isLive() && !connect()) return false;
  const name = $("group").value.trim();
  const next = roomOf(name);
  if (next !== room) $("room").replaceChildren();
  room = next;
  try {
    await room.join();
    tell("group", "group-hint", GROUP_HINT, false);
    await showEarlier();
    return true;
  } catch (error) {
    const why = error.reason === "NO_ROUTE" || error.reason === "FORBIDDEN" ? "no [[group]] of this gateway lets you in" : error.message;
    tell("group", "group-hint", `${statusName(error.status)} ${error.reason}: ${why}.`, true);
    return false;
  }
}

/** What was said before, if the gateway keeps it and tells it. */
async function showEarlier() {
  const before = room.position?.offset ?? 0;
  const isEmpty = $("room").childElementCount === 0;
  try {
    const { pushes } = await room.history({ limit: EARLIER_MAX, newestFirst: true });
    if (isEmpty) pushes.filter(({ offset }) => offset <= before).forEach((push) => addLine(push, true));
    tellRoom(`you joined ${room.name} after offset ${before}`);
  } catch (error) {
    log("wait", "no history", error.reason, error.message);
  }
}

async function say() {
  const text = $("words").value;
  if (!text.trim()) return $("words").focus();
  if (!isIn && !(await join())) return;
  const byService = $("way").value === "service";
  $("words").value = "";
  try {
    if (byService) await gate.request(chatId, { say: text, room: room.name });
    else await room.publish(LINE_ID, { text }, { toMe: true });
  } catch (error) {
    tellRoom(`not said: ${statusName(error.status)} ${error.reason || error.message}`, "bad");
  }
}

// The gateway: where it listens, and what it answers.

let urlHint = "As the gateway prints it when it starts.";

async function askGateway() {
  const secure = location.protocol === "https:";
  const guess = `${secure ? "wss" : "ws"}://${location.hostname || "127.0.0.1"}:9000/ws`;
  let told = null;
  try {
    const response = await fetch("/connect", { cache: "no-store" });
    if (response.ok) told = await response.json();
    else if (response.status === 401) {
      notice(
        "This gateway tells its state (Health, Stats, Explain) to who shows the admin token, which a link cannot. " +
          "Connecting works without it: type the gateway's URL.",
      );
    }
  } catch {
    // The field keeps the guess.
  }
  if (told) showGateway(told, secure);
  else urlHint = "A guess: the gateway prints its URL when it starts.";
  if (!$("url").value) $("url").value = pick(told?.urls ?? [], secure) ?? guess;
  tell("url", "url-hint", urlHint, false);
}

/** The URL to connect to: by TLS if the page came so. */
const pick = (urls, secure) => urls.find((url) => url.startsWith("wss:") === secure) ?? urls[0];

function showGateway({ urls, auth, routes, gateway_ids: [first, last] }, secure) {
  urlHint = urls.length > 1 ? `This gateway listens at ${urls.join(" and ")}.` : "Where this gateway listens.";
  const origin = pick(urls, secure);
  $("urls").replaceChildren(...urls.map((url) => Object.assign(element("option"), { value: url })));
  $("url").placeholder = origin ?? "";
  const asks = auth.required ? "This gateway asks everyone for a token." : "Without one you are nobody in particular.";
  $("token-hint").textContent =
    auth.mode === "off"
      ? "This gateway signs nobody in (auth.mode): leave it empty."
      : `${asks} A JSON Web Token; this page keeps it nowhere, and a reload forgets it.`;
  firstOwn = first;
  const chat = routes.find(({ demo, service }) => demo && service === "chat");
  chatId = chat?.range[0] ?? 0;
  const [byClient, byService] = $("way").options;
  byClient.textContent = `the client publishes it (id ${first + 15})`;
  byService.hidden = byService.disabled = !chatId;
  if (chatId) byService.textContent = `the service chat reads it, and pushes (id ${chatId})`;
  const route = routes.find(({ demo }) => demo) ?? routes[0];
  if (route) serviceId = Math.min(route.range[0] + 1, route.range[1]);
  const ranges = routes.map(({ range, service, demo }) => `${service}${demo ? " (demo)" : ""} ${range.join("–")}`);
  const all = [...ranges, `the gateway itself ${first}–${last}`].join(", ");
  $("msg-id-hint").textContent = `Ids: ${all}. The key picks the instance.`;
  const ids = routes.map(({ range, service }) => [range[0] === serviceId - 1 ? serviceId : range[0], service]);
  const options = ids.map(([id, service]) => Object.assign(element("option", "", service), { value: id }));
  $("msg-ids").replaceChildren(...options);
  const hasDemo = routes.some(({ demo }) => demo);
  fillExamples(EXAMPLES.filter(({ isDemo }) => hasDemo || !isDemo));
}

function fillExamples(examples) {
  const options = examples.map(({ name }, n) => Object.assign(element("option", "", name), { value: n }));
  $("preset").replaceChildren(...options);
  $("preset").onchange = () => {
    const { payload, key = "", id } = examples[Number($("preset").value)];
    $("payload").value = payload;
    $("key").value = key;
    $("msg-id").value = id === undefined ? serviceId : id >= 9000 ? id - 9000 + firstOwn : id;
    tell("payload", "payload-hint", PAYLOAD_HINT, false);
    showExplain();
  };
  $("preset").onchange();
}

function showExplain() {
  const query = new URLSearchParams({ msg_id: $("msg-id").value || "1001" });
  const key = $("key").value;
  if (key) query.set("key", key);
  else if (session) query.set("session", session);
  $("explain").href = `/routing/explain?${query}`;
}

// Listeners.

const on = (id, event, listener) => $(id).addEventListener(event, listener);

const isOn = (id) => $(id).getAttribute("aria-disabled") !== "true";
const onButton = (id, action) => on(id, "click", () => isOn(id) && action());

on("connect", "submit", (event) => {
  event.preventDefault();
  if (isOn("open")) connect();
});
on("message", "submit", (event) => {
  event.preventDefault();
  send();
});
on("payload", "keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
on("join", "submit", (event) => {
  event.preventDefault();
  if (isIn) room.leave().catch((error) => log("bad", error.reason, error.message));
  else join();
});
on("say", "submit", (event) => {
  event.preventDefault();
  say();
});
on("repeat", "change", () => {
  if (!$("repeat").checked) return stopRepeating();
  repeating = setInterval(send, 1_000);
  send();
});
onButton("close", () => gate.close());
onButton("cut", () => gate.cut());
onButton("offline", goOffline);
on("clear", "click", () => {
  $("log").replaceChildren();
  $("empty").hidden = false;
});
for (const id of ["msg-id", "key"]) on(id, "input", showExplain);

fillExamples(EXAMPLES);
showState();
askGateway();

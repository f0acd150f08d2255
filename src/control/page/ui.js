// The dashboard: it asks /live once a second, keeps the rows of five minutes, and shows them.
// Whatever comes from the network is put into the page as text. A row of a table stays the same
// element while its thing is there, so that the focus of who uses the keyboard stays, too.

import { Chart, short, time } from "/ui-charts.js";
import { ask, askDrain, setToken } from "/ui-actions.js";

const $ = (id) => document.getElementById(id);

/** Time between two questions. */
const PAUSE_MS = 1_000;
/** Rows of "now", of "the last minute". */
const NOW = 10;
const MINUTE = 60;
const LINES_MAX = 100;

/** Counters by which connections end, with the code that the client is told. */
const CLOSES = [
  ["closed_slow", "4001", "the client read too slowly"],
  ["closed_no_heartbeat", "4002", "nothing came from the client"],
  ["session_takeovers", "4000", "the session was resumed elsewhere"],
  ["closed_token_expired", "4004", "its token expired"],
  ["closed_no_auth", "4005", "it did not sign in"],
  ["closed_bad_token", "4500", "its token was refused"],
  ["closed_elsewhere", "4502", "another connection of its user"],
  ["closed_try_later", "1013", "its user is over a limit"],
  ["closed_policy", "1008", "too many frames, or a rule broken"],
  ["closed_protocol", "1002–1009", "the protocol was broken"],
  ["closed_drain", "1001", "this gateway stops"],
  ["closed_by_service", "of a service", "a service closed it"],
  ["handshake_timeout", "none", "the handshake was not finished"],
  ["handshake_refused", "HTTP", "the upgrade was refused"],
];
/** Counters of sessions and pushes. */
const PUSHES = [
  ["sessions_resumed", "resumed", "sessions resumed"],
  ["sessions_gap", "gap", "sessions resumed with a gap"],
  ["sessions_lost", "lost", "sessions lost"],
  ["sessions_expired", "expired", "sessions that expired"],
  ["pushes", "pushes", "pushes that came"],
  ["pushes_refused", "refused", "pushes refused"],
  ["deliveries", "deliveries", "pushes written to clients"],
  ["deliveries_missed", "missed", "pushes missed by slow members"],
  ["pushes_dropped", "dropped", "pushes dropped for sessions"],
  ["group_joins", "joins", "joins of groups"],
];
/** Counters of what fair shares and rates refused or held up. */
const HELD = [
  ["queue_over_share", "messages over a share of a queue"],
  ["dedup_over_share", "ids over a share"],
  ["connections_over_share", "connections over a share"],
  ["unauthenticated_over_share", "handshakes over a share"],
  ["read_held", "connections slowed for their rate"],
  ["user_messages_refused", "messages over a user's rate"],
  ["address_messages_refused", "messages over an address' rate"],
];
const LOST = ["sessions_lost_expired", "sessions_lost_restarted", "sessions_lost_ended", "sessions_lost_unknown"];
const MESSAGES = ["system_messages", "business_messages", "gateway_messages"];
const ERRORS = ["system_errors", "business_errors", "gateway_errors"];
/** Stages in the order of a message's way, with what each is. */
const STAGES = {
  whole: "whole, in the gateway and back",
  unread: "unread in the kernel",
  reading: "reading, a turn",
  decode: "decoding",
  queue_wait: "waiting in the queue",
  batch_wait: "waiting for a batch",
  round_trip: "round trip to the service",
  reply_flush: "flushing the answer",
  stall: "stall of a shard",
};
/** Places in a row's list of a shard. */
const [SHARD, SILENT, BUSY, READ, CONNECTIONS, UNANSWERED, QUEUE, USAGE] = [0, 1, 2, 3, 4, 5, 6, 7];

let mark = "";
let rows = [];
let lines = [];
/** Time of the last answer; 0 = none yet. */
let answered = 0;

// Small things.

const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

/** Sets a text, if it is another one: who selects text or listens is not disturbed. */
function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** Brings the children of a list in line with its items: one for each key, in their order. */
function keyed(list, items, keyOf, make, update) {
  const old = new Map([...list.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, n) => {
    const key = String(keyOf(item));
    const child = old.get(key) ?? make(item);
    child.dataset.key = key;
    old.delete(key);
    if (list.children[n] !== child) list.insertBefore(child, list.children[n] ?? null);
    update(child, item);
  });
  old.forEach((child) => child.remove());
}

/** A row of a table, whose cells have these names. */
function tableRow(names) {
  const row = element("tr");
  row.setAttribute("role", "row");
  names.forEach((name, n) => {
    const cell = element(n === 0 ? "th" : "td");
    if (n === 0) cell.scope = "row";
    cell.setAttribute("role", n === 0 ? "rowheader" : "cell");
    cell.dataset.label = name;
    row.append(cell);
  });
  return row;
}

const fill = (row, texts) => texts.forEach((text, n) => say(row.children[n], text));

/** Shows items as rows of a table, or the sentence beside it where there are none. */
function rowsOf(id, items, keyOf, make, update) {
  keyed($(id), items, keyOf, make, update);
  $(id).closest("table").hidden = items.length === 0;
  const empty = $(`no-${id}`);
  if (empty) empty.hidden = items.length > 0;
}

/** Shows items as rows of texts. */
function table(id, names, items, keyOf, textsOf, update = () => {}) {
  rowsOf(id, items, keyOf, () => tableRow(names), (row, item) => {
    fill(row, textsOf(item));
    update(row, item);
  });
}

/** Figures with their names, as a list of terms. */
function figures(id, items) {
  const make = () => {
    const figure = element("div");
    figure.append(element("dt"), element("dd"));
    return figure;
  };
  keyed($(id), items, ([name]) => name, make, (figure, [name, value]) => {
    say(figure.firstChild, name);
    say(figure.lastChild, value);
  });
}

const last = (count) => rows.slice(-count);
const grew = (row, names) => names.reduce((sum, name) => sum + (row.counters[name] ?? 0), 0);
const sum = (some, names) => some.reduce((all, row) => all + grew(row, names), 0);
const seconds = (some) => Math.max(some.reduce((all, { ms }) => all + ms, 0) / 1_000, 0.001);
/** Growth a second in the row, and in some rows. */
const rate = (row, names) => grew(row, names) / (row.ms / 1_000);
const rateOf = (some, names) => sum(some, names) / seconds(some);
const namesOf = (name) => (name === "sessions_lost" ? LOST : [name]);

// Is it well, and why not.

function showVerdict({ health, findings, node, version, uptime_s: uptime }) {
  const { status, degraded_by: reasons, warnings } = health;
  const isWell = status === "ok" && findings.length === 0;
  const word = status === "ok" && !isWell ? "serving, but look at this" : status;
  say($("status"), isWell ? "ok: all is well" : word);
  $("verdict-title").className = `state ${isWell ? "good" : status === "ok" || status === "starting" ? "wait" : "bad"}`;
  const hours = uptime < 7_200 ? `${Math.floor(uptime / 60)} min` : `${Math.floor(uptime / 3_600)} h`;
  say($("about"), `node ${node} · shardgate ${version} · up for ${hours}`);
  const of = (kind) => (text) => ({ kind, text });
  const told = findings.map(({ text }) => text);
  const all = [...reasons.map(of("bad")), ...told.map(of("wait")), ...warnings.map(of("wait"))];
  const unique = all.filter(({ text }, n) => all.findIndex((other) => other.text === text) === n);
  keyed($("why"), unique, ({ text }) => text, () => element("li"), (item, { kind, text }) => {
    item.className = kind;
    say(item, text);
  });
}

/** What was found about each part: sentences by part and name. */
let found = new Map();

function takeFindings(findings) {
  found = new Map();
  for (const { part, name, text } of findings) {
    const key = `${part} ${name}`;
    found.set(key, [...(found.get(key) ?? []), text]);
  }
}

/** Marks an element about which something was found, and says what below its name. */
function flag(owner, cell, part, name) {
  const texts = found.get(`${part} ${name}`) ?? [];
  owner.classList.toggle("flagged", texts.length > 0);
  let note = cell.querySelector(".note");
  if (texts.length === 0) return note?.remove();
  if (!note) cell.append((note = element("span", "note")));
  say(note, texts.join("; "));
}

// Messages.

const traffic = new Chart($("traffic"), {
  title: "Messages in, answers, errors",
  series: [{ name: "in", className: "a" }, { name: "answers", className: "c" }, { name: "errors", className: "bad" }],
  format: (n) => `${short(n)}/s`,
});

function showTraffic() {
  traffic.draw(rows, (row) => [rate(row, MESSAGES), rate(row, ["answers"]), rate(row, ERRORS)]);
  const now = last(NOW);
  const { levels } = rows.at(-1);
  figures("traffic-figures", [
    ["in", `${short(rateOf(now, MESSAGES))}/s`],
    ["answers", `${short(rateOf(now, ["answers"]))}/s`],
    ["errors", `${short(rateOf(now, ERRORS))}/s`],
    ["without an answer", short(levels.unanswered)],
    ["in queues", short(levels.queue_items)],
    ["calls in flight", short(levels.calls_in_flight)],
    ["retries", `${short(rateOf(now, ["retries"]))}/s`],
  ]);
  const of = (some, name) => some.reduce((all, row) => all + (row.reasons[name] ?? 0), 0);
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.reasons)))];
  const counts = names.map((name) => [name, of(now, name), of(last(MINUTE), name), of(rows, name)]);
  counts.sort((a, b) => b[2] - a[2] || b[3] - a[3] || a[0].localeCompare(b[0]));
  const columns = ["Reason", "Last 10 s", "Last minute", "Five minutes"];
  table("reasons", columns, counts, ([name]) => name, ([name, ...n]) => [name, ...n.map(short)]);
}

// Times by stage.

const stages = Object.entries(STAGES).map(([name, title]) => {
  const series = [{ name: "p99", className: "b" }, { name: "p50", className: "a" }];
  const chart = new Chart($("stages"), { title, series, format: time, isLogarithmic: true, className: name });
  return { name, chart };
});

function showStages() {
  for (const { name, chart } of stages) {
    chart.draw(rows, ({ stages }) => [stages[name]?.[2] ?? null, stages[name]?.[1] ?? null]);
  }
}

// Shards.

const strips = new Map();

function showShards({ shards }) {
  const make = ({ shard }) => {
    const strip = element("div", "strip");
    const head = element("p", "strip-head");
    head.append(element("b", "", `Shard ${shard}`), element("span", "numbers"));
    strip.append(head);
    const chart = new Chart(strip, {
      title: `shard ${shard}`,
      series: [{ name: "busy", className: "a", isArea: true }, { name: "queue", className: "c" }],
      format: (n) => (n === null ? "–" : `${Math.round(n)} %`),
      top: 100,
    });
    strips.set(shard, chart);
    return strip;
  };
  keyed($("shards"), shards, ({ shard }) => shard, make, (strip, { shard, state }) => {
    const own = (row) => row.shards.find((one) => one[SHARD] === shard);
    strips.get(shard).draw(rows, (row) => {
      const one = own(row);
      return one && !one[SILENT] ? [one[BUSY] / 10, one[USAGE] / 10] : [null, null];
    });
    const now = last(NOW).map(own).filter(Boolean);
    const end = now.at(-1);
    const mean = (at) => now.reduce((all, one) => all + one[at], 0) / Math.max(now.length, 1);
    const facts = end && [
      `busy ${Math.round(mean(BUSY) / 10)} %`,
      `${short(Math.round(mean(READ)))} messages/s`,
      `queue ${short(end[QUEUE])}`,
      `${short(end[CONNECTIONS])} connections`,
      `${short(end[UNANSWERED])} unanswered`,
    ];
    const told = state === "ready" ? (facts ?? ["no sample yet"]) : [state, ...(facts ?? [])];
    say(strip.querySelector(".numbers"), told.join(" · "));
    flag(strip, strip.querySelector(".strip-head"), "shard", shard);
  });
}

// Instances.

const usable = ({ draining, standing, connected, share_percent: share }) =>
  !draining && connected > 0 && share > 0 && standing !== "unreachable";

function makeInstance() {
  const row = tableRow(["Instance", "Standing", "In flight", "Waiting", "Calls", "Failed", "p50", "p99", "Action"]);
  const [name, standing, inFlight] = row.children;
  name.append(element("b"), element("span", "quiet"));
  standing.append(element("span", "chip"));
  const bar = element("span", "bar");
  bar.ariaHidden = "true";
  bar.append(element("span"));
  inFlight.append(element("span", "number"), bar);
  const button = element("button", "small");
  button.type = "button";
  row.lastChild.append(button);
  return row;
}

function showInstances({ instances: { count, shown }, over_ms: over }) {
  const span = over / 1_000;
  const more = count > shown.length ? `${shown.length} of ${count}, those with the most trouble; ` : "";
  say($("instances-about"), `${more}calls, failures and times of the last ${Math.round(span)} s`);
  rowsOf("instances", shown, ({ id }) => id, makeInstance, (row, one) => {
    const [name, standing, inFlight, waiting, calls, failed, p50, p99, action] = row.children;
    say(name.firstChild, one.id);
    say(name.children[1], ` ${one.service} · ${one.address}`);
    const word = one.draining ? "draining" : one.standing;
    say(standing.firstChild, one.share_percent < 100 && !one.draining ? `${word}, ${one.share_percent} %` : word);
    const isBad = one.standing === "unreachable" || one.standing === "ejected" || one.standing === "down";
    standing.firstChild.className = `chip ${isBad ? "bad" : one.draining ? "wait" : "good"}`;
    say(inFlight.firstChild, `${one.in_flight} of ${one.slots}`);
    inFlight.lastChild.firstChild.style.width = `${Math.min((one.in_flight / Math.max(one.slots, 1)) * 100, 100)}%`;
    say(waiting, short(one.waiting));
    say(calls, `${short(one.calls / span)}/s`);
    say(failed, short(one.failed));
    say(p50, time(one.p50_us));
    say(p99, time(one.p99_us));
    const button = action.firstChild;
    say(button, one.draining ? "Undrain" : "Drain");
    button.ariaLabel = `${button.textContent} ${one.id}`;
    const isOther = (other) => other.service === one.service && other.id !== one.id && usable(other);
    button.onclick = () => askDrain(one, shown.filter(isOther).length);
    flag(row, name, "instance", one.id);
  });
}

// Held back.

function showHeld({ held_back: held }) {
  const minute = last(MINUTE);
  const counts = HELD.map(([name, what]) => [sum(minute, [name]), what]).filter(([n]) => n > 0);
  const slow = rows.at(-1).levels.slow_owners;
  const told = counts.map(([n, what]) => `${short(n)} ${what}`);
  if (slow > 0) told.push(`${slow} owners are slow and travel apart`);
  say($("held-about"), told.length ? `in the last minute: ${told.join(", ")}` : "");
  const columns = ["Who", "At", "Level", "Waiting", "Refused", "Last"];
  const who = ({ user, tenant, session }) => (user ? `user ${user}${tenant ? ` of ${tenant}` : ""}` : `session ${session}`);
  const key = (owner) => `${owner.shard} ${owner.tenant ?? ""} ${owner.user ?? owner.session}`;
  table("held", columns, held, key, (owner) => [
    who(owner),
    `${owner.instance ?? "an instance that has gone"}, shard ${owner.shard}`,
    owner.full,
    short(owner.held),
    short(owner.refused),
    owner.ago_ms < 1_000 ? "now" : `${Math.round(owner.ago_ms / 1_000)} s ago`,
  ], (row, { ago_ms: ago }) => row.classList.toggle("flagged", ago < 10_000));
}

// Connections, sessions, pushes.

const conns = new Chart($("conns"), {
  title: "Connections",
  series: [{ name: "open", className: "a", isArea: true }],
  format: short,
});

function showConnections() {
  conns.draw(rows, ({ levels }) => [levels.connections]);
  const minute = last(MINUTE);
  const { connections, sessions, sessions_away: away, unauthenticated, group_members: members } = rows.at(-1).levels;
  figures("conns-figures", [
    ["open", short(connections)],
    ["upgraded", short(sessions)],
    ["not signed in yet", short(unauthenticated)],
    ["sessions away", short(away)],
    ["members of groups", short(members)],
    ["opened", `${short(rateOf(minute, ["accepted"]))}/s`],
    ["closed", `${short(rateOf(minute, ["closed"]))}/s`],
  ]);
  const known = CLOSES.map(([name]) => name).filter((name) => name.startsWith("closed_"));
  const left = (some) => Math.max(sum(some, ["closed"]) - sum(some, known), 0);
  const closes = CLOSES.map(([name, code, cause]) => [code, cause, sum(minute, [name]), sum(rows, [name])]);
  closes.push(["others", "the client left", left(minute), left(rows)]);
  const there = closes.filter(([, , , n]) => n > 0);
  const columns = ["Code", "Cause", "Last minute", "Five minutes"];
  table("closes", columns, there, ([code]) => code, ([code, cause, ...n]) => [code, cause, ...n.map(short)], (row, [code]) =>
    flag(row, row.children[1], "closes", code),
  );
  const pushes = PUSHES.map(([name, key, what]) => [key, what, sum(minute, namesOf(name)), sum(rows, namesOf(name))]);
  const some = pushes.filter(([, , , n]) => n > 0);
  table("pushes", ["What", "Last minute", "Five minutes"], some, ([key]) => key, ([, what, ...n]) => [what, ...n.map(short)], (row, [key]) =>
    flag(row, row.children[0], "pushes", key),
  );
}

// Tenants.

function showTenants({ tenants: { count, shown }, over_ms: over }) {
  $("tenants-card").hidden = count === 0;
  const which = count > shown.length ? `${shown.length} of ${count}: those over their quota, then the busiest; ` : "";
  say($("tenants-about"), `${which}of the last ${Math.round(over / 1_000)} s`);
  const columns = ["Tenant", "Messages", "Answers", "Errors", "Over quota", "Bytes queued"];
  rowsOf("tenants", shown, ({ name }) => name, () => tableRow(columns), (row, one) => {
    const [name] = row.children;
    if (!name.firstChild) name.append(element("b"));
    say(name.firstChild, one.name);
    const numbers = [one.messages, one.answers, one.errors, one.refused, one.queued_bytes];
    numbers.forEach((n, at) => say(row.children[at + 1], short(n)));
    flag(row, name, "tenant", one.name);
  });
}

// Warnings.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

function showWarnings(fresh) {
  lines = [...lines, ...fresh].slice(-LINES_MAX);
  for (const { unix_ms: at, level, target, text } of fresh) {
    const line = element("li", level === "ERROR" ? "bad" : "wait");
    const when = element("time", "", clock.format(at));
    when.dateTime = new Date(at).toISOString();
    line.append(when, " ", element("span", "chip", level.toLowerCase()), " ", element("code", "", text));
    line.title = target;
    $("warnings").prepend(line);
  }
  while ($("warnings").childElementCount > LINES_MAX) $("warnings").lastElementChild.remove();
  $("warnings").hidden = lines.length === 0;
  $("no-warnings").hidden = lines.length > 0;
}

// The question, each second.

/** Takes in an answer of /live: of another run of the gateway, everything begins anew. */
function take(answer) {
  const runOf = (text) => text.split("-")[0];
  if (mark && runOf(mark) !== runOf(answer.mark)) {
    rows = [];
    lines = [];
    $("warnings").replaceChildren();
  }
  mark = answer.mark;
  rows = [...rows, ...answer.rows].slice(-answer.rows_max);
  takeFindings(answer.findings);
  showVerdict(answer);
  showWarnings(answer.warnings);
  if (rows.length === 0) return;
  $("main").classList.remove("waiting", "stale");
  showTraffic();
  showStages();
  showShards(answer);
  showInstances(answer);
  showHeld(answer);
  showConnections();
  showTenants(answer);
}

function showFailure({ status, message }) {
  $("main").classList.add("stale");
  $("unlock").hidden = status !== 401;
  $("verdict-title").className = "state bad";
  if (status === 401) {
    say($("status"), "it asks for the token");
    return;
  }
  const ago = answered ? ` for ${Math.round((performance.now() - answered) / 1_000)} s` : "";
  say($("status"), `no answer${ago}: ${message}`);
}

/** Number of the loop of questions; a new one ends the one before it. */
let loop = 0;

async function look(own) {
  let answer;
  try {
    answer = await ask(mark ? `/live?since=${mark}` : "/live");
  } catch (error) {
    if (own !== loop) return;
    showFailure(error);
    // It waits for the token.
    if (error.status === 401) return;
  }
  if (own !== loop) return;
  if (answer) {
    answered = performance.now();
    $("unlock").hidden = true;
    take(answer);
  }
  // A page that nobody sees asks nothing; it lacks nothing when it is seen again.
  const next = () => look(own);
  if (document.hidden) document.addEventListener("visibilitychange", next, { once: true });
  else setTimeout(next, PAUSE_MS);
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("unlock-token").value);
  $("unlock-token").value = "";
  look(++loop);
});

look(loop);

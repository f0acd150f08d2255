// What the dashboard asks the gateway besides /live: the explanation of a route, and changes. A
// change asks twice. The token is a variable of this module, and nowhere else.

const $ = (id) => document.getElementById(id);

/** Time for which an answer is waited for. */
const PATIENCE_MS = 8_000;
/** Time for which the result of a change is shown. */
const SHOWN_MS = 30_000;

let token = "";

/** Asks the gateway. An answer that is no success is an error with its sentence and `status`. */
export async function ask(path, method = "GET") {
  const headers = {};
  const shown = token;
  if (shown) headers.Authorization = `Bearer ${shown}`;
  if (method === "POST") headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  // A token that is refused is forgotten, so that it is asked for again.
  if (response.status === 401 && token === shown) token = "";
  const why = body.error ?? body.problems?.join("; ") ?? `HTTP ${response.status}`;
  throw Object.assign(new Error(why), { status: response.status });
}

export const setToken = (text) => (token = text.trim());

const element = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text });

// Changes.

/** The change that is being asked about, and whether the first question was answered. */
let pending = null;
let isSecond = false;
/** Timer that takes the result away. */
let shown = 0;

/**
 * Asks whether something is to be changed, and then once more.
 * @param change title; first and second: the questions; verb; path; done: what is said after it,
 * of the answer
 */
export function askTwice(change) {
  pending = change;
  isSecond = false;
  $("ask-token").value = "";
  question();
  $("ask").showModal();
  (token ? $("ask-no") : $("ask-token")).focus();
}

function question() {
  const { title, first, second, verb } = pending;
  $("ask-title").textContent = isSecond ? "Are you sure?" : title;
  $("ask-text").textContent = isSecond ? second : first;
  $("ask-yes").textContent = isSecond ? `Yes, ${verb}` : `${verb[0].toUpperCase()}${verb.slice(1)} …`;
  $("ask-token-field").hidden = isSecond || token !== "";
  $("ask-token").required = !$("ask-token-field").hidden;
}

async function go() {
  const { path, done } = pending;
  $("ask").close();
  let kind = "good";
  let text;
  try {
    text = done(await ask(path, "POST"));
  } catch (error) {
    kind = "bad";
    text = `Not done: ${error.message}.`;
  }
  $("done").hidden = false;
  $("done").className = `note ${kind}`;
  $("done").textContent = text;
  clearTimeout(shown);
  shown = setTimeout(() => ($("done").hidden = true), SHOWN_MS);
}

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isSecond) return go();
  if ($("ask-token").value) setToken($("ask-token").value);
  isSecond = true;
  question();
  // Enter alone must not answer both questions.
  $("ask-no").focus();
});
$("ask-no").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("close", () => ($("ask-token").value = ""));

$("reload").addEventListener("click", () =>
  askTwice({
    title: "Reload the configuration?",
    first: "The gateway reads its files again and applies all of them, or none if one is wrong.",
    second: "What the files say is in force at once, for all connections that are open.",
    verb: "reload",
    path: "/reload",
    done: ({ changes, warnings }) => {
      const many = changes.length === 1 ? "1 setting" : `${changes.length} settings`;
      const which = changes.map(({ key, old, new: now }) => `${key}: ${old ?? "none"} → ${now ?? "none"}`);
      return [`Reloaded: ${many} changed.`, ...which, ...warnings].join(" ");
    },
  }),
);

/** Asks about an instance: whether it is to be drained, or to get messages again. */
export function askDrain({ id, service, draining }, others) {
  const rest = others === 1 ? "1 other instance takes" : `${others} other instances take`;
  const drain = {
    title: `Drain ${id}?`,
    first: "It finishes what it has, and gets no new messages.",
    second: others === 0 ? `No other instance of ${service} takes messages: all of them will be refused.` : `${rest} the messages of ${service}.`,
    verb: `drain ${id}`,
    path: `/instances/${encodeURIComponent(id)}/drain`,
    done: () => `${id} gets no new messages.`,
  };
  const undrain = {
    title: `Give ${id} messages again?`,
    first: "It takes its part of the keys again.",
    second: `Messages of ${service} go to it from now on.`,
    verb: `undrain ${id}`,
    path: `/instances/${encodeURIComponent(id)}/undrain`,
    done: () => `${id} gets messages again.`,
  };
  askTwice(draining ? undrain : drain);
}

// The explanation of a route.

$("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = [...new FormData($("explain"))].filter(([, value]) => value !== "");
  const out = $("explained");
  try {
    const told = await ask(`/routing/explain?${new URLSearchParams(fields)}`);
    const where = { instance: `goes to ${told.instance}`, gateway: "the gateway answers it itself" }[told.outcome];
    const kind = told.outcome === "instance" || told.outcome === "gateway" ? "good" : "bad";
    const head = element("p", kind, "");
    head.append(element("span", "chip", where ?? told.outcome.replace("_", " ")));
    const list = element("ul", "", "");
    list.append(...told.why.map((why) => element("li", "", why)));
    out.replaceChildren(head, list);
  } catch (error) {
    out.replaceChildren(element("p", "hint bad", error.message));
  }
});
